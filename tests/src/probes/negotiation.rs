//! The negotiation: options, their errors, and what an export says about itself.

use std::io::Write;

use anyhow::{Context, ensure};
use common::handshake::context::ContextRequest;
use common::option::Info;
use common::proto::{ClientFlags, EXPORT_NAME_PADDING, OptionType, ReplyType, TransmissionFlags};

use super::{FIXED, Outcome, Probe, Target, offered};
use crate::endpoint::Endpoint;
use crate::haggle::Haggle;

pub(super) const PROBES: &[Probe] = &[
    Probe {
        section: "Fixed newstyle negotiation",
        name: "the greeting offers fixed newstyle, and no flag that is not defined",
        script: greeting,
    },
    Probe {
        section: "Client flags",
        name: "client flags that were not offered end the connection",
        script: unknown_client_flags,
    },
    Probe {
        section: "Option types",
        name: "options it does not know are ERR_UNSUP, in step",
        script: unknown,
    },
    Probe {
        section: "Option types",
        name: "a LIST with data is ERR_INVALID, and LIST ends in ACK",
        script: list,
    },
    Probe {
        section: "Option types",
        name: "lengths inside an option that wrap are an error, in step",
        script: wrapping_lengths,
    },
    Probe {
        section: "Option types",
        name: "an export that is not there is ERR_UNKNOWN, in step",
        script: absent,
    },
    Probe { section: "Option types", name: "INFO and GO agree, and tell the export", script: info_and_go },
    Probe { section: "Transmission flags", name: "transmission flags imply what they must", script: flags },
    Probe { section: "Size constraints", name: "block sizes keep the rules for them", script: block_sizes },
    Probe {
        section: "Option types",
        name: "structured replies can be asked for twice, in step",
        script: structured_twice,
    },
    Probe {
        section: "Option types",
        name: "contexts without structured replies are ERR_INVALID",
        script: contexts_too_early,
    },
    Probe {
        section: "Metadata querying",
        name: "unknown contexts are ignored, known ones have ids of their own",
        script: contexts,
    },
    Probe { section: "TLS support", name: "STARTTLS is refused where it cannot be", script: starttls },
    Probe { section: "Option types", name: "ABORT is acknowledged, then it closes", script: abort },
    Probe {
        section: "Handshake flags",
        name: "EXPORT_NAME is padded for those who did not decline",
        script: padding,
    },
];

fn greeting(target: &Target) -> Outcome {
    let greeting = target.socket().receive(18)?;
    ensure!(greeting[..16] == *b"NBDMAGICIHAVEOPT", "it greets with {greeting:?}");
    let flags = u16::from_be_bytes([greeting[16], greeting[17]]);
    ensure!(flags & 1 == 1, "it does not offer fixed newstyle");
    ensure!(flags & !3 == 0, "it sets handshake flags {flags:#x}");
    Ok(())
}

fn unknown_client_flags(target: &Target) -> Outcome {
    for unknown in [4_u32, 1 << 31] {
        let mut socket = target.socket();
        socket.receive(18)?;
        socket.write_all(&(FIXED.0 | unknown).to_be_bytes())?;
        let said = socket.until_closed();
        ensure!(said.is_empty(), "it says {} bytes to flags {unknown:#x}", said.len());
    }
    Ok(())
}

/// The negotiation goes on as if nothing had happened.
fn in_step(mut haggle: Haggle, target: &Target) -> Outcome {
    let (_, reply) = haggle.ask_about(OptionType::GO, &target.export);
    ensure!(reply == ReplyType::ACK, "afterwards GO is answered by {reply:?}");
    Ok(())
}

fn unknown(target: &Target) -> Outcome {
    let mut haggle = target.haggle();
    for option in [4, 12, 99, u32::MAX].map(OptionType) {
        for len in [0, 1, 5000, 100_000] {
            let (_, reply) = haggle.ask(option, &vec![7; len]);
            ensure!(reply == ReplyType::ERR_UNSUP, "{option:?} with {len} bytes is {reply:?}");
        }
    }
    in_step(haggle, target)
}

fn list(target: &Target) -> Outcome {
    let mut haggle = target.haggle();
    let (_, reply) = haggle.ask(OptionType::LIST, b"");
    // Not to list exports is a policy that a server may have.
    ensure!(reply == ReplyType::ACK || reply == ReplyType::ERR_POLICY, "LIST ends in {reply:?}");
    let (pieces, reply) = haggle.ask(OptionType::LIST, b"x");
    let refused = [ReplyType::ERR_INVALID, ReplyType::ERR_POLICY].contains(&reply);
    ensure!(pieces.is_empty() && refused, "a LIST with data is answered by {reply:?}");
    in_step(haggle, target)
}

fn wrapping_lengths(target: &Target) -> Outcome {
    let mut haggle = target.haggle();
    for option in [OptionType::INFO, OptionType::GO] {
        for inner in [1, 5, 0x7fff_ffff, u32::MAX - 1, u32::MAX] {
            let mut data = u32::to_be_bytes(inner).to_vec();
            data.extend_from_slice(b"\0\0");
            let (_, reply) = haggle.ask(option, &data);
            ensure!(reply.is_error(), "{option:?} with a name of {inner} bytes is answered by {reply:?}");
        }
    }
    in_step(haggle, target)
}

fn absent(target: &Target) -> Outcome {
    let mut haggle = target.haggle();
    let name = format!("{} that is not there", target.export);
    for option in [OptionType::INFO, OptionType::GO] {
        let (pieces, reply) = haggle.ask_about(option, &name);
        // nbdkit and its like serve one thing under every name.
        offered(reply != ReplyType::ACK)?;
        ensure!(reply == ReplyType::ERR_UNKNOWN, "{option:?} is answered by {reply:?}");
        ensure!(pieces.is_empty(), "it tells about an export that is not there");
    }
    in_step(haggle, target)
}

fn info_and_go(target: &Target) -> Outcome {
    let mut haggle = target.haggle();
    let told = haggle.ask_about(OptionType::INFO, &target.export);
    ensure!(told.1 == ReplyType::ACK, "INFO is answered by {:?}", told.1);
    let (mut info, mut go) = (told.0, haggle.ask_about(OptionType::GO, &target.export).0);
    info.sort();
    go.sort();
    ensure!(info == go, "INFO tells {info:?}, GO {go:?}");
    let tells_export = |piece: &Vec<u8>| matches!(Info::decode(piece), Ok(Info::Export { .. }));
    ensure!(go.iter().filter(|piece| tells_export(piece)).count() == 1, "the export itself is not told once");
    Ok(())
}

fn flags(target: &Target) -> Outcome {
    type F = TransmissionFlags;
    let flags = target.export().flags;
    ensure!(flags.contains(F::HAS_FLAGS), "HAS_FLAGS is missing: {flags:?}");
    let fast_alone = flags.contains(F::SEND_FAST_ZERO) && !flags.contains(F::SEND_WRITE_ZEROES);
    ensure!(!fast_alone, "FAST_ZERO without WRITE_ZEROES");
    ensure!(!flags.contains(F::SEND_DF), "DF without structured replies");
    ensure!(!flags.contains(F::BLOCK_STATUS_PAYLOAD), "a payload of BLOCK_STATUS without extended headers");
    Ok(())
}

fn block_sizes(target: &Target) -> Outcome {
    let (infos, _) = target.infos(OptionType::GO);
    let told = infos.iter().find_map(|info| match info {
        Info::BlockSizes(sizes) => Some(*sizes),
        _ => None,
    });
    offered(told.is_some())?;
    let sizes = told.context("just seen")?;
    ensure!(sizes.are_valid(), "{sizes:?}");
    let size = target.export().size;
    ensure!(
        size.is_multiple_of(sizes.minimum.into()),
        "the last bytes of {size} are out of reach: {sizes:?}"
    );
    Ok(())
}

fn structured_twice(target: &Target) -> Outcome {
    let mut haggle = target.haggle();
    offered(haggle.ask(OptionType::STRUCTURED_REPLY, b"").1 == ReplyType::ACK)?;
    let (_, reply) = haggle.ask(OptionType::STRUCTURED_REPLY, b"");
    ensure!([ReplyType::ACK, ReplyType::ERR_INVALID].contains(&reply), "the second time it is {reply:?}");
    in_step(haggle, target)
}

fn contexts_too_early(target: &Target) -> Outcome {
    let mut haggle = target.haggle();
    let queries = vec!["base:allocation".to_owned()];
    let request = ContextRequest { export: target.export.clone(), queries }.encode();
    let (_, reply) = haggle.ask(OptionType::SET_META_CONTEXT, &request);
    offered(reply != ReplyType::ERR_UNSUP)?;
    ensure!(reply == ReplyType::ERR_INVALID, "it is answered by {reply:?}");
    in_step(haggle, target)
}

fn contexts(target: &Target) -> Outcome {
    let mut haggle = target.haggle();
    offered(haggle.ask(OptionType::STRUCTURED_REPLY, b"").1 == ReplyType::ACK)?;
    let ask = |haggle: &mut Haggle, option, queries: &[&str]| {
        let queries = queries.iter().map(|it| (*it).to_owned()).collect();
        haggle.ask(option, &ContextRequest { export: target.export.clone(), queries }.encode())
    };
    let (all, reply) = ask(&mut haggle, OptionType::LIST_META_CONTEXT, &[]);
    offered(reply == ReplyType::ACK && !all.is_empty())?;
    let nonsense = ["base:no-such-leaf", "x-no-such-namespace:x"];
    let (selected, reply) = ask(&mut haggle, OptionType::SET_META_CONTEXT, &nonsense);
    ensure!(selected.is_empty() && reply == ReplyType::ACK, "unknown names: {selected:?}, {reply:?}");
    let (selected, reply) = ask(&mut haggle, OptionType::SET_META_CONTEXT, &[]);
    ensure!(selected.is_empty() && reply == ReplyType::ACK, "no names: {selected:?}, {reply:?}");
    let names: Vec<&str> = all.iter().map(|it| std::str::from_utf8(&it[4..])).collect::<Result<_, _>>()?;
    let (selected, reply) = ask(&mut haggle, OptionType::SET_META_CONTEXT, &names);
    ensure!(reply == ReplyType::ACK, "what was listed is answered by {reply:?}");
    let mut ids: Vec<_> = selected.iter().map(|it| &it[..4]).collect();
    ids.sort_unstable();
    ids.dedup();
    ensure!(ids.len() == names.len(), "{} names were listed, {} ids were given", names.len(), ids.len());
    in_step(haggle, target)
}

fn starttls(target: &Target) -> Outcome {
    let mut haggle = target.haggle();
    if let Endpoint::Tls(..) = target.endpoint {
        let (_, reply) = haggle.ask(OptionType::STARTTLS, b"");
        ensure!(reply == ReplyType::ERR_INVALID, "over TLS it is answered by {reply:?}");
        return in_step(haggle, target);
    }
    let (_, reply) = haggle.ask(OptionType::STARTTLS, b"data");
    ensure!(reply.is_error(), "with data it is answered by {reply:?}");
    in_step(haggle, target)
}

fn abort(target: &Target) -> Outcome {
    let mut haggle = target.haggle();
    let (pieces, reply) = haggle.ask(OptionType::ABORT, b"");
    ensure!(pieces.is_empty() && reply == ReplyType::ACK, "it is answered by {reply:?}");
    let said = haggle.socket.until_closed();
    ensure!(said.is_empty(), "it goes on talking: {said:?}");
    Ok(())
}

fn padding(target: &Target) -> Outcome {
    let size = target.export().size;
    for (flags, padding) in [(FIXED | ClientFlags::NO_ZEROES, 0), (FIXED, EXPORT_NAME_PADDING)] {
        let mut haggle = Haggle::open(&target.endpoint, flags);
        haggle.say(OptionType::EXPORT_NAME, target.export.as_bytes());
        let told = haggle.socket.receive(10 + padding)?;
        ensure!(told[..8] == size.to_be_bytes(), "it tells another size");
        ensure!(told[10..].iter().all(|byte| *byte == 0), "the padding is not zero");
        // Whatever is wrong with a request, its magic and cookie stand where they belong.
        haggle.socket.write_all(b"\x25\x60\x95\x13\0\0\0\0COOKIE78\0\0\0\0\0\0\0\0\0\0\x02\0")?;
        let reply = haggle.socket.receive(16)?;
        ensure!(reply == b"\x67\x44\x66\x98\0\0\0\0COOKIE78", "the stream is out of step: {reply:?}");
        haggle.socket.receive(512)?;
    }
    Ok(())
}
