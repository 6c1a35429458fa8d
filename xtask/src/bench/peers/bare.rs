//! The least that a server can do: a thread per client that receives what there is, reads or writes the
//! file where it is, and sends all answers at once. It knows one export and nothing that can go wrong. What
//! it costs is what the kernel costs; no server of more than that can cost less by the same means.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};

/// Bytes that are received at a time, and the longest request.
const ROOM: usize = 4 << 20;
const HEADER: usize = 28;
const REPLY: usize = 16;

/// What it serves, and where.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    unix: Option<PathBuf>,
    #[arg(long)]
    port: Option<u16>,
    image: PathBuf,
}

/// Serves until it is killed.
pub(crate) fn run(args: &Args) -> Result<()> {
    let file =
        OpenOptions::new().read(true).write(true).open(&args.image).context("cannot open the image")?;
    let file = Arc::new(file);
    if let Some(path) = &args.unix {
        for stream in UnixListener::bind(path)?.incoming() {
            let (stream, file) = (stream?, file.clone());
            thread::spawn(move || serve(stream, &file));
        }
    }
    let listener = TcpListener::bind(("127.0.0.1", args.port.context("no address")?))?;
    for stream in listener.incoming() {
        let (stream, file) = (stream?, file.clone());
        stream.set_nodelay(true)?;
        thread::spawn(move || serve(stream, &file));
    }
    Ok(())
}

fn serve(mut stream: impl Read + Write, file: &File) -> io::Result<()> {
    negotiate(&mut stream, file.metadata()?.len())?;
    let (mut buffer, mut end) = (vec![0; ROOM], 0);
    let mut replies = Vec::new();
    loop {
        match stream.read(&mut buffer[end..])? {
            0 => return Ok(()),
            received => end += received,
        }
        let mut start = 0;
        while end - start >= HEADER {
            let header = &buffer[start..start + HEADER];
            let (command, at, len) = (u16_at(header, 6), u64_at(header, 16), u32_at(header, 24) as usize);
            let payload = start + HEADER..start + HEADER + if command == 1 { len } else { 0 };
            if payload.end > end {
                break;
            }
            replies.extend(0x6744_6698_u32.to_be_bytes());
            replies.extend([0; 4]);
            replies.extend(&header[8..REPLY]);
            match command {
                0 => {
                    let from = replies.len();
                    replies.resize(from + len, 0);
                    file.read_exact_at(&mut replies[from..], at)?;
                }
                1 => file.write_all_at(&buffer[payload.clone()], at)?,
                2 => return Ok(()),
                _ => file.sync_data()?,
            }
            start = payload.end;
        }
        buffer.copy_within(start..end, 0);
        end -= start;
        stream.write_all(&replies)?;
        replies.clear();
    }
}

/// Agrees on the one export and refuses everything else.
fn negotiate(stream: &mut (impl Read + Write), size: u64) -> io::Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    stream.read_exact(&mut [0; 4])?;
    loop {
        let mut header = [0; 16];
        stream.read_exact(&mut header)?;
        let (option, len) = (u32_at(&header, 8), u32_at(&header, 12));
        io::copy(&mut stream.take(len.into()), &mut io::sink())?;
        let mut answer = |kind: u32, payload: &[u8]| {
            let len = u32::try_from(payload.len()).expect("a short answer");
            let mut reply = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
            [option, kind, len].iter().for_each(|number| reply.extend(number.to_be_bytes()));
            stream.write_all(&[&reply, payload].concat())
        };
        if option != 7 {
            answer(0x8000_0001, &[])?;
            continue;
        }
        // NBD_INFO_EXPORT; the flags say FLUSH and that several connections see the same.
        answer(3, &[&[0, 0], &size.to_be_bytes()[..], &0x0105_u16.to_be_bytes()].concat())?;
        return answer(1, &[]);
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
