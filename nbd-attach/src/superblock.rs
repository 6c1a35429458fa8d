//! What a disk says that it is: the identifiers in the superblocks of what lies on it. They stay the same for as long as it
//! is in use, so they tell one disk from another where the server cannot.

use common::proto::{REQUEST_HEADER_LEN, REQUEST_MAGIC, SIMPLE_REPLY_HEADER_LEN, WireError};
use common::reply::SimpleReply;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Where superblocks are: offsets and lengths, each of whole blocks of any size.
const PLACES: [(u64, usize); 2] = [(0, 8192), (65536, 4096)];
/// `NBD_CMD_READ` and `NBD_CMD_DISC` in the spec.
const READ: u16 = 0;
const DISCONNECT: u16 = 2;

/// Something that can lie on a disk: its name, a magic number and an identifier, and where they are.
struct Kind {
    name: &'static str,
    /// The place, the offset there, the bytes.
    magic: (usize, usize, &'static [u8]),
    /// The offset there, the length.
    identifier: (usize, usize),
}

/// What lies on top of others comes after them: what is found first counts.
const KINDS: [Kind; 9] = [
    Kind { name: "LUKS", magic: (0, 0, b"LUKS\xba\xbe"), identifier: (168, 40) },
    Kind { name: "LVM", magic: (0, 512, b"LABELONE"), identifier: (544, 32) },
    Kind { name: "md", magic: (0, 4096, &[0xfc, 0x4e, 0x2b, 0xa9]), identifier: (4112, 16) },
    Kind { name: "btrfs", magic: (1, 64, b"_BHRfS_M"), identifier: (32, 16) },
    Kind { name: "xfs", magic: (0, 0, b"XFSB"), identifier: (32, 16) },
    Kind { name: "swap", magic: (0, 4086, b"SWAPSPACE2"), identifier: (1036, 16) },
    Kind { name: "ext", magic: (0, 1080, &[0x53, 0xef]), identifier: (1128, 16) },
    Kind { name: "GPT", magic: (0, 512, b"EFI PART"), identifier: (568, 16) },
    Kind { name: "MBR", magic: (0, 510, &[0x55, 0xaa]), identifier: (440, 4) },
];

/// Asks the server of a connection on which transmission has begun. Nothing is left on it.
///
/// # Errors
/// The connection fails, or the server breaks the rules.
pub async fn identity<S>(stream: &mut S, size: u64) -> io::Result<Option<String>>
where
    S: AsyncRead + AsyncWrite + Unpin + ?Sized,
{
    let mut found: Vec<Vec<u8>> = Vec::with_capacity(PLACES.len());
    for (offset, length) in PLACES {
        let inside = offset + length as u64 <= size;
        found.push(if inside { read(stream, offset, length).await? } else { vec![] });
    }
    Ok(identified(&found))
}

/// Tells the server that nothing more comes.
///
/// # Errors
/// The connection fails.
pub async fn disconnect<S: AsyncWrite + Unpin + ?Sized>(stream: &mut S) -> io::Result<()> {
    stream.write_all(&request(DISCONNECT, 0, 0)).await?;
    stream.flush().await
}

/// What is there; nothing where the server cannot read it.
async fn read<S>(stream: &mut S, offset: u64, length: usize) -> io::Result<Vec<u8>>
where
    S: AsyncRead + AsyncWrite + Unpin + ?Sized,
{
    stream.write_all(&request(READ, offset, u32::try_from(length).unwrap_or(0))).await?;
    stream.flush().await?;
    let mut header = [0; SIMPLE_REPLY_HEADER_LEN];
    stream.read_exact(&mut header).await?;
    let reply = SimpleReply::decode(&header).map_err(io::Error::other)?;
    if reply.cookie != offset {
        return Err(io::Error::other("the server answered another request"));
    }
    if reply.error != WireError::OK {
        return Ok(vec![]);
    }
    let mut data = vec![0; length];
    stream.read_exact(&mut data).await?;
    Ok(data)
}

fn request(command: u16, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(REQUEST_HEADER_LEN);
    bytes.extend(REQUEST_MAGIC.to_be_bytes());
    // No flags.
    bytes.extend(0u16.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    // The offset is as good a cookie as any.
    bytes.extend(offset.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

fn identified(found: &[Vec<u8>]) -> Option<String> {
    let is_there = |kind: &&Kind| {
        let (place, offset, magic) = kind.magic;
        found.get(place).and_then(|bytes| bytes.get(offset..offset + magic.len())) == Some(magic)
    };
    let kind = KINDS.iter().find(is_there)?;
    let (offset, length) = kind.identifier;
    let bytes = found[kind.magic.0].get(offset..offset + length)?;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("{} {text}", kind.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(changes: &[(usize, &[u8])]) -> Vec<Vec<u8>> {
        let mut all = vec![0; 65536 + 4096];
        for (offset, bytes) in changes {
            all[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        let start = |offset: u64| usize::try_from(offset).unwrap();
        PLACES.iter().map(|(offset, length)| all[start(*offset)..][..*length].to_vec()).collect()
    }

    #[test]
    fn what_lies_on_a_disk_is_identified() {
        let ext = disk(&[(1080, &[0x53, 0xef]), (1128, &[7; 16]), (510, &[0x55, 0xaa])]);
        assert_eq!(identified(&ext).unwrap(), format!("ext {}", "07".repeat(16)));
        let btrfs = disk(&[(65536 + 64, b"_BHRfS_M"), (65536 + 32, &[1; 16])]);
        assert_eq!(identified(&btrfs).unwrap(), format!("btrfs {}", "01".repeat(16)));
        assert_eq!(identified(&disk(&[(510, &[0x55, 0xaa])])).unwrap(), "MBR 00000000");
        assert_eq!(identified(&disk(&[])), None);
        assert_eq!(identified(&[vec![], vec![]]), None);
    }

    #[tokio::test]
    async fn a_server_is_asked_by_the_spec() {
        let (mut ours, mut theirs) = tokio::io::duplex(1 << 20);
        let answers = async {
            for (offset, length) in PLACES {
                let mut asked = [0; REQUEST_HEADER_LEN];
                theirs.read_exact(&mut asked).await.unwrap();
                assert_eq!(asked[16..24], offset.to_be_bytes());
                let error = if offset == 0 { WireError::OK } else { WireError(5) };
                let reply = SimpleReply { error, cookie: offset };
                theirs.write_all(&reply.encode()).await.unwrap();
                if error == WireError::OK {
                    let mut data = vec![0; length];
                    data[..4].copy_from_slice(b"XFSB");
                    theirs.write_all(&data).await.unwrap();
                }
            }
        };
        let (identity, ()) = tokio::join!(identity(&mut ours, 1 << 20), answers);
        assert_eq!(identity.unwrap().unwrap(), format!("xfs {}", "00".repeat(16)));
    }
}
