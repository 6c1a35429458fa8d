//! Transmission with simple replies: what requests do, and how those are refused that cannot be.

use std::io::Write;
use std::thread;

use anyhow::{Result, ensure};
use common::proto::{CommandFlags, CommandType, PAYLOAD_MAX, TransmissionFlags, WireError};

use super::{Outcome, Probe, Target, offered};
use crate::client::{Client, FUA, PLAIN};
use crate::disk::pattern;

type C = CommandType;
type F = TransmissionFlags;

const NONE: F = F::NONE;
/// Where the probes write; beyond lies what nobody touches.
const LEN: u32 = 128 << 10;

pub(super) const PROBES: &[Probe] = &[
    Probe { section: "Request types", name: "a READ tells what was written", script: reads_back },
    Probe {
        section: "Transmission phase",
        name: "many requests in flight are each answered once",
        script: many,
    },
    Probe { section: "Error values", name: "a READ beyond the end is EINVAL", script: read_beyond },
    Probe {
        section: "Error values",
        name: "a WRITE beyond the end is ENOSPC, its payload drained",
        script: write_beyond,
    },
    Probe { section: "Error values", name: "offsets that wrap are beyond the end", script: wrapping },
    Probe { section: "Error values", name: "commands it does not know are EINVAL", script: unknown_commands },
    Probe {
        section: "Error values",
        name: "flags that do not belong to a command are EINVAL",
        script: unknown_flags,
    },
    Probe { section: "Request types", name: "requests of no length do not disconnect", script: no_length },
    Probe { section: "Request types", name: "FLUSH works where it is offered", script: flush },
    Probe { section: "Command flags", name: "FUA goes with every command where it is offered", script: fua },
    Probe { section: "Request types", name: "WRITE_ZEROES reads back as zero", script: zeroes },
    Probe { section: "Error values", name: "WRITE_ZEROES beyond the end is ENOSPC", script: zeroes_beyond },
    Probe {
        section: "Command flags",
        name: "a fast zero is done, or ENOTSUP with no effect",
        script: fast_zero,
    },
    Probe {
        section: "Request types",
        name: "TRIM works where it is offered, beyond the end EINVAL",
        script: trim,
    },
    Probe {
        section: "Request types",
        name: "CACHE works where it is offered and changes nothing",
        script: cache,
    },
    Probe {
        section: "Error values",
        name: "a read-only export is EPERM for whatever writes",
        script: read_only,
    },
    Probe { section: "Size constraints", name: "32 MiB is no denial of service", script: longest },
    Probe {
        section: "Transmission flags",
        name: "every connection sees what any wrote, if they may be many",
        script: coherent,
    },
    Probe {
        section: "Request types",
        name: "DISC finishes what was sent before it, unanswered",
        script: disc,
    },
    Probe { section: "Termination", name: "who sends no more still gets its replies", script: half_closed },
    Probe {
        section: "Request message",
        name: "a wrong magic ends that connection and no other",
        script: magic,
    },
];

/// The outcome of one comparison.
fn is(seen: WireError, wanted: WireError, what: &str) -> Outcome {
    ensure!(seen == wanted, "{what} is {seen:?}");
    Ok(())
}

/// A request's answer; a READ's data is dropped.
fn ask(client: &mut Client, command: C, flags: CommandFlags, at: u64, len: u32) -> WireError {
    client.ask(command, flags, at, len)
}

fn reads_back(target: &Target) -> Outcome {
    let mut client = target.writable(NONE)?;
    for (seed, at, len) in [(1, 0, 4096), (2, 512, 512), (3, 4096, 65536)] {
        let data = pattern(seed, len);
        is(client.write(PLAIN, at, &data), WireError::OK, "a WRITE")?;
        let read = client.read(at, u32::try_from(len)?);
        ensure!(read.as_ref() == Ok(&data), "a READ of what was just written tells something else");
    }
    Ok(())
}

fn many(target: &Target) -> Outcome {
    let mut client = target.client();
    let mut out = Vec::new();
    for number in 0..64 {
        client.encode(&mut out, C::READ, PLAIN, number % 16 * 4096, 4096);
    }
    client.socket.write_all(&out)?;
    while client.outstanding() > 0 {
        is(client.reply().error, WireError::OK, "one of 64 READs")?;
    }
    Ok(())
}

fn read_beyond(target: &Target) -> Outcome {
    let mut client = target.client();
    let size = client.export.size;
    for (at, len) in [(size, 512), (size - 512, 1024)] {
        is(ask(&mut client, C::READ, PLAIN, at, len), WireError::EINVAL, "a READ beyond the end")?;
    }
    is(ask(&mut client, C::READ, PLAIN, 0, 512), WireError::OK, "the next READ")
}

fn write_beyond(target: &Target) -> Outcome {
    let mut client = target.writable(NONE)?;
    let size = client.export.size;
    for (at, len) in [(size, 512), (size - 512, 1024), (size, 1 << 20)] {
        is(client.write(PLAIN, at, &vec![1; len]), WireError::ENOSPC, "a WRITE beyond the end")?;
    }
    is(ask(&mut client, C::READ, PLAIN, 0, 512), WireError::OK, "the next READ")
}

fn wrapping(target: &Target) -> Outcome {
    let mut client = target.client();
    for (at, len) in [(u64::MAX - 511, 512), (u64::MAX - 511, 1024), (1 << 63, 4096)] {
        let error = ask(&mut client, C::READ, PLAIN, at, len);
        ensure!(error != WireError::OK, "a READ of {len} bytes at {at} is answered with data");
    }
    is(ask(&mut client, C::READ, PLAIN, 0, 512), WireError::OK, "the next READ")
}

fn unknown_commands(target: &Target) -> Outcome {
    let mut client = target.client();
    for command in [8, 0x8000, u16::MAX].map(CommandType) {
        is(ask(&mut client, command, PLAIN, 0, 512), WireError::EINVAL, &format!("{command:?}"))?;
    }
    is(ask(&mut client, C::READ, PLAIN, 0, 512), WireError::OK, "the next READ")
}

fn unknown_flags(target: &Target) -> Outcome {
    let mut client = target.client();
    for bit in 1..16 {
        let flag = CommandFlags(1 << bit);
        is(ask(&mut client, C::READ, flag, 0, 512), WireError::EINVAL, &format!("a READ with {flag:?}"))?;
    }
    is(ask(&mut client, C::READ, PLAIN, 0, 512), WireError::OK, "the next READ")
}

fn no_length(target: &Target) -> Outcome {
    let mut client = target.client();
    let _unspecified = client.read(0, 0);
    if !client.export.flags.contains(F::READ_ONLY) {
        let _unspecified = client.write(PLAIN, 0, &[]);
    }
    is(ask(&mut client, C::READ, PLAIN, 0, 512), WireError::OK, "the next READ")
}

fn flush(target: &Target) -> Outcome {
    let mut client = target.writable(F::SEND_FLUSH)?;
    is(client.write(PLAIN, 0, &[1; 512]), WireError::OK, "a WRITE")?;
    is(client.flush(), WireError::OK, "a FLUSH")
}

fn fua(target: &Target) -> Outcome {
    let mut client = target.writable(F::SEND_FUA)?;
    let flags = client.export.flags;
    is(client.write(FUA, 0, &[1; 512]), WireError::OK, "a WRITE with FUA")?;
    let rest = [
        (C::READ, NONE, 512),
        (C::FLUSH, F::SEND_FLUSH, 0),
        (C::TRIM, F::SEND_TRIM, 512),
        (C::WRITE_ZEROES, F::SEND_WRITE_ZEROES, 512),
        (C::CACHE, F::SEND_CACHE, 512),
    ];
    for (command, needs, len) in rest {
        if flags.contains(needs) {
            is(ask(&mut client, command, FUA, 0, len), WireError::OK, &format!("{command:?} with FUA"))?;
        }
    }
    Ok(())
}

fn zeroes(target: &Target) -> Outcome {
    let mut client = target.writable(F::SEND_WRITE_ZEROES)?;
    for flags in [PLAIN, CommandFlags::NO_HOLE] {
        is(client.write(PLAIN, 0, &pattern(5, LEN as usize)), WireError::OK, "a WRITE")?;
        is(ask(&mut client, C::WRITE_ZEROES, flags, 512, LEN - 1024), WireError::OK, "WRITE_ZEROES")?;
        let mut wanted = pattern(5, LEN as usize);
        wanted[512..LEN as usize - 512].fill(0);
        ensure!(client.read(0, LEN) == Ok(wanted), "what was zeroed is not zero, or its neighbours are");
    }
    Ok(())
}

fn zeroes_beyond(target: &Target) -> Outcome {
    let mut client = target.writable(F::SEND_WRITE_ZEROES)?;
    let size = client.export.size;
    is(ask(&mut client, C::WRITE_ZEROES, PLAIN, size - 512, 1024), WireError::ENOSPC, "WRITE_ZEROES")
}

fn fast_zero(target: &Target) -> Outcome {
    let mut client = target.writable(F::SEND_FAST_ZERO)?;
    let before = pattern(6, LEN as usize);
    is(client.write(PLAIN, 0, &before), WireError::OK, "a WRITE")?;
    let error = ask(&mut client, C::WRITE_ZEROES, CommandFlags::FAST_ZERO, 0, LEN);
    let wanted = match error {
        WireError::OK => vec![0; LEN as usize],
        WireError::ENOTSUP => before,
        error => anyhow::bail!("it is {error:?}"),
    };
    ensure!(client.read(0, LEN) == Ok(wanted), "after {error:?} the bytes are others");
    Ok(())
}

fn trim(target: &Target) -> Outcome {
    let mut client = target.writable(F::SEND_TRIM)?;
    let size = client.export.size;
    is(ask(&mut client, C::TRIM, PLAIN, 0, LEN), WireError::OK, "a TRIM")?;
    is(ask(&mut client, C::TRIM, PLAIN, size - 512, 1024), WireError::EINVAL, "a TRIM beyond the end")
}

fn cache(target: &Target) -> Outcome {
    let mut client = target.writable(F::SEND_CACHE)?;
    let data = pattern(7, LEN as usize);
    is(client.write(PLAIN, 0, &data), WireError::OK, "a WRITE")?;
    is(ask(&mut client, C::CACHE, PLAIN, 0, LEN), WireError::OK, "CACHE")?;
    ensure!(client.read(0, LEN) == Ok(data), "CACHE has changed something");
    Ok(())
}

fn read_only(target: &Target) -> Outcome {
    let mut client = target.client();
    offered(client.export.flags.contains(F::READ_ONLY))?;
    is(client.write(PLAIN, 0, &[1; 512]), WireError::EPERM, "a WRITE")?;
    is(ask(&mut client, C::READ, PLAIN, 0, 512), WireError::OK, "the next READ")
}

fn longest(target: &Target) -> Outcome {
    let mut client = target.writable(NONE)?;
    offered(client.export.size >= u64::from(PAYLOAD_MAX))?;
    let data = pattern(8, PAYLOAD_MAX as usize);
    is(client.write(PLAIN, 0, &data), WireError::OK, "a WRITE of 32 MiB")?;
    ensure!(client.read(0, PAYLOAD_MAX) == Ok(data), "a READ of 32 MiB tells something else");
    Ok(())
}

fn coherent(target: &Target) -> Outcome {
    let mut clients = (0..4).map(|_| target.writable(F::CAN_MULTI_CONN)).collect::<Result<Vec<_>>>()?;
    for writer in 0..clients.len() {
        let data = pattern(u8::try_from(writer)?, 5000);
        is(clients[writer].write(PLAIN, 0, &data), WireError::OK, "a WRITE")?;
        for reader in &mut clients {
            ensure!(reader.read(0, 5000).as_ref() == Ok(&data), "a connection does not see it");
        }
    }
    Ok(())
}

fn disc(target: &Target) -> Outcome {
    const BLOCK: u32 = 4096;
    let mut client = target.writable(NONE)?;
    let mut out = Vec::new();
    for number in 0..32_u8 {
        client.encode(&mut out, C::WRITE, PLAIN, u64::from(number) * u64::from(BLOCK), BLOCK);
        out.extend(pattern(number, BLOCK as usize));
    }
    client.encode(&mut out, C::DISC, PLAIN, 0, 0);
    client.socket.write_all(&out)?;
    let mut answered = 0;
    while client.try_reply().is_ok() {
        answered += 1;
    }
    ensure!(answered == 32, "{answered} of 32 WRITEs before DISC are answered");
    let mut reader = target.client();
    for number in 0..32_u8 {
        let read = reader.read(u64::from(number) * u64::from(BLOCK), BLOCK);
        ensure!(read == Ok(pattern(number, BLOCK as usize)), "WRITE {number} of 32 before DISC is lost");
    }
    Ok(())
}

fn half_closed(target: &Target) -> Outcome {
    let mut client = target.client();
    for number in 0..32 {
        client.send(C::READ, PLAIN, number * 4096, 4096);
    }
    client.socket.close_sending()?;
    let mut answered = 0;
    while client.outstanding() > 0 && client.try_reply().is_ok() {
        answered += 1;
    }
    ensure!(answered == 32, "{answered} of 32 READs are answered");
    Ok(())
}

fn magic(target: &Target) -> Outcome {
    let (mut good, mut bad) = (target.client(), target.client());
    let until_closed =
        thread::spawn(move || bad.socket.write_all(&[0xee; 28]).map(|()| bad.socket.until_closed()));
    let _said = until_closed.join().map_err(|_| anyhow::anyhow!("it does not close"))??;
    is(ask(&mut good, C::READ, PLAIN, 0, 512), WireError::OK, "a READ of another client")
}
