//! Options and option replies, as the client writes and the server reads them, and back.

use crate::Violation;
use crate::handshake::{BlockSizes, Export, Listed};
use crate::proto::{IHAVEOPT, InfoType, OPTION_REPLY_MAGIC, OptionType, ReplyType, TransmissionFlags};
use crate::wire::{self, Cursor, Malformed, Put};

/// Bytes of an option header: IHAVEOPT, option, length of the data.
pub const OPTION_HEADER_LEN: usize = 16;
/// Bytes of an option reply header: magic, option, reply type, length of the data.
pub const REPLY_HEADER_LEN: usize = 20;

/// What one option says about itself before its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// What is asked.
    pub option: OptionType,
    /// Bytes of data that follow.
    pub length: u32,
}

impl OptionHeader {
    /// Reads the 16 bytes of a header.
    pub fn decode(bytes: &[u8]) -> Result<OptionHeader, Violation> {
        let mut cursor = Cursor::new(bytes);
        let found = cursor.u64().unwrap_or_default();
        if found != IHAVEOPT {
            return Err(Violation::Magic { expected: "IHAVEOPT", found });
        }
        let option = OptionType(cursor.u32().unwrap_or_default());
        Ok(OptionHeader { option, length: cursor.u32().unwrap_or_default() })
    }
}

/// Appends a whole option.
pub fn put_option(out: &mut Vec<u8>, option: OptionType, data: &[u8]) {
    out.put_u64(IHAVEOPT);
    out.put_u32(option.0);
    out.put_u32(u32::try_from(data.len()).expect("options of ours are short"));
    out.extend_from_slice(data);
}

/// What one option reply says about itself before its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyHeader {
    /// The option that is answered.
    pub option: OptionType,
    /// What the answer is.
    pub reply: ReplyType,
    /// Bytes of data that follow.
    pub length: u32,
}

impl ReplyHeader {
    /// Reads the 20 bytes of a header.
    pub fn decode(bytes: &[u8]) -> Result<ReplyHeader, Violation> {
        let mut cursor = Cursor::new(bytes);
        let found = cursor.u64().unwrap_or_default();
        if found != OPTION_REPLY_MAGIC {
            return Err(Violation::Magic { expected: "an option reply", found });
        }
        let option = OptionType(cursor.u32().unwrap_or_default());
        let reply = ReplyType(cursor.u32().unwrap_or_default());
        Ok(ReplyHeader { option, reply, length: cursor.u32().unwrap_or_default() })
    }
}

/// Appends a whole option reply.
pub fn put_reply(out: &mut Vec<u8>, option: OptionType, reply: ReplyType, data: &[u8]) {
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(option.0);
    out.put_u32(reply.0);
    out.put_u32(u32::try_from(data.len()).expect("option replies of ours are short"));
    out.extend_from_slice(data);
}

/// The data of NBD_OPT_INFO and NBD_OPT_GO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InfoRequest {
    /// The export asked about.
    pub export: String,
    /// The pieces of information the client understands beyond EXPORT.
    pub wants: Vec<InfoType>,
}

impl InfoRequest {
    /// Reads the data of an INFO or GO option.
    pub fn decode(data: &[u8]) -> Result<InfoRequest, Malformed> {
        let mut cursor = Cursor::new(data);
        let export = cursor.string()?.to_owned();
        let count = cursor.u16()?;
        let wants = (0..count).map(|_| cursor.u16().map(InfoType)).collect::<Result<_, _>>()?;
        cursor.end()?;
        Ok(InfoRequest { export, wants })
    }

    /// Writes the data of an INFO or GO option.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut data = Vec::new();
        data.put_string(&self.export);
        data.put_u16(u16::try_from(self.wants.len()).expect("there are few kinds of information"));
        for want in &self.wants {
            data.put_u16(want.0);
        }
        data
    }
}

/// Appends the NBD_REP_INFO replies that describe `export`: EXPORT always, the rest as wanted.
pub fn put_infos(out: &mut Vec<u8>, option: OptionType, export: &Export, wants: &[InfoType]) {
    let mut put = |info: InfoType, fill: &dyn Fn(&mut Vec<u8>)| {
        let mut data = Vec::new();
        data.put_u16(info.0);
        fill(&mut data);
        put_reply(out, option, ReplyType::INFO, &data);
    };
    put(InfoType::EXPORT, &|data| {
        data.put_u64(export.size);
        data.put_u16(export.flags.0);
    });
    if let Some(name) = export.name.as_ref().filter(|_| wants.contains(&InfoType::NAME)) {
        put(InfoType::NAME, &|data| data.extend_from_slice(name.as_bytes()));
    }
    if let Some(text) = export.description.as_ref().filter(|_| wants.contains(&InfoType::DESCRIPTION)) {
        put(InfoType::DESCRIPTION, &|data| data.extend_from_slice(text.as_bytes()));
    }
    if let Some(sizes) = export.block_sizes.filter(|_| wants.contains(&InfoType::BLOCK_SIZE)) {
        put(InfoType::BLOCK_SIZE, &|data| {
            data.put_u32(sizes.minimum);
            data.put_u32(sizes.preferred);
            data.put_u32(sizes.maximum_payload);
        });
    }
}

/// One NBD_REP_INFO as a client reads it; kinds it does not know are [`Info::Other`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Info {
    /// Size in bytes and transmission flags.
    Export {
        /// Bytes.
        size: u64,
        /// What it can do.
        flags: TransmissionFlags,
    },
    /// Canonical name.
    Name(String),
    /// Text for people.
    Description(String),
    /// Size constraints.
    BlockSizes(BlockSizes),
    /// A kind this client does not know, which the spec tells it to ignore.
    Other(InfoType),
}

impl Info {
    /// Reads the data of one NBD_REP_INFO.
    pub fn decode(data: &[u8]) -> Result<Info, Malformed> {
        let mut cursor = Cursor::new(data);
        let info = match InfoType(cursor.u16()?) {
            InfoType::EXPORT => Info::Export { size: cursor.u64()?, flags: TransmissionFlags(cursor.u16()?) },
            InfoType::NAME => Info::Name(wire::string(cursor.rest())?.to_owned()),
            InfoType::DESCRIPTION => Info::Description(wire::string(cursor.rest())?.to_owned()),
            InfoType::BLOCK_SIZE => Info::BlockSizes(BlockSizes {
                minimum: cursor.u32()?,
                preferred: cursor.u32()?,
                maximum_payload: cursor.u32()?,
            }),
            other => return Ok(Info::Other(other)),
        };
        cursor.end()?;
        Ok(info)
    }
}

/// Appends one NBD_REP_SERVER of a LIST.
pub fn put_listed(out: &mut Vec<u8>, listed: &Listed) {
    let mut data = Vec::new();
    data.put_string(&listed.name);
    data.extend_from_slice(listed.description.as_deref().unwrap_or_default().as_bytes());
    put_reply(out, OptionType::LIST, ReplyType::SERVER, &data);
}

/// Reads the data of one NBD_REP_SERVER.
pub fn decode_listed(data: &[u8]) -> Result<Listed, Malformed> {
    let mut cursor = Cursor::new(data);
    let name = cursor.string()?.to_owned();
    let description = wire::string(cursor.rest())?;
    Ok(Listed { name, description: (!description.is_empty()).then(|| description.to_owned()) })
}
