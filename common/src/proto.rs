//! Every number of the spec that this stack speaks, each once.
//!
//! Numbers that travel are newtypes: unknown values survive a round trip and `Debug` prints the
//! spec's names.

#[macro_use]
mod macros;

/// The IANA port of NBD.
pub const DEFAULT_PORT: u16 = 10809;

/// First word of every newstyle server: "NBDMAGIC".
pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT": second word of a newstyle greeting and first of every option.
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// First word of every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First word of every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First word of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

/// First word of a structured reply's chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// First word of every request under extended headers.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// First word of every reply under extended headers.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Bytes of a request or reply header under extended headers, whose lengths have 64 bits.
pub const EXTENDED_HEADER_LEN: usize = 32;
/// Bytes of a request header: magic, flags, type, cookie, offset, length.
pub const REQUEST_HEADER_LEN: usize = 28;
/// Bytes of a simple reply header: magic, error, cookie.
pub const SIMPLE_REPLY_HEADER_LEN: usize = 16;
/// Bytes of a chunk's header: magic, flags, type, cookie, length.
pub const CHUNK_HEADER_LEN: usize = 20;
/// Bytes of the zero padding after an NBD_OPT_EXPORT_NAME answer without NO_ZEROES.
pub const EXPORT_NAME_PADDING: usize = 124;
/// Longest string the spec allows, in bytes ("Values", section on strings).
pub const STRING_MAX: usize = 4096;
/// The largest payload a portable peer may send or ask for: 32 MiB ("Size constraints").
pub const PAYLOAD_MAX: u32 = 32 << 20;
/// The largest payload that is taken though no portable peer sends it: 64 MiB, as by the reference server and nbdkit.
pub const PAYLOAD_TAKEN_MAX: u32 = 64 << 20;

wire_flags! {
    /// Handshake flags of the server's greeting (16 bits).
    HandshakeFlags(u16) {
        /// The server speaks fixed newstyle.
        FIXED_NEWSTYLE = 0,
        /// The server can leave out the padding after NBD_OPT_EXPORT_NAME.
        NO_ZEROES = 1,
    }
}

wire_flags! {
    /// The client's answer to [`HandshakeFlags`] (32 bits).
    ClientFlags(u32) {
        /// The client speaks fixed newstyle.
        FIXED_NEWSTYLE = 0,
        /// The client wants no padding.
        NO_ZEROES = 1,
    }
}

wire_flags! {
    /// What an export can do ("Transmission flags").
    TransmissionFlags(u16) {
        /// Always set.
        HAS_FLAGS = 0,
        /// Writes are refused.
        READ_ONLY = 1,
        /// NBD_CMD_FLUSH works.
        SEND_FLUSH = 2,
        /// NBD_CMD_FLAG_FUA works.
        SEND_FUA = 3,
        /// The medium spins.
        ROTATIONAL = 4,
        /// NBD_CMD_TRIM works.
        SEND_TRIM = 5,
        /// NBD_CMD_WRITE_ZEROES and NO_HOLE work.
        SEND_WRITE_ZEROES = 6,
        /// NBD_CMD_FLAG_DF works (structured replies only).
        SEND_DF = 7,
        /// Several connections see one coherent export and share FLUSH.
        CAN_MULTI_CONN = 8,
        /// Experimental RESIZE extension.
        SEND_RESIZE = 9,
        /// NBD_CMD_CACHE works.
        SEND_CACHE = 10,
        /// NBD_CMD_FLAG_FAST_ZERO works.
        SEND_FAST_ZERO = 11,
        /// NBD_CMD_BLOCK_STATUS takes a payload filter (extended headers).
        BLOCK_STATUS_PAYLOAD = 12,
    }
}

wire_flags! {
    /// Flags of one request ("Command flags").
    CommandFlags(u16) {
        /// Force unit access: the effect is on stable storage before the reply.
        FUA = 0,
        /// WRITE_ZEROES must not make a hole.
        NO_HOLE = 1,
        /// Do not fragment a structured read.
        DF = 2,
        /// BLOCK_STATUS returns one extent.
        REQ_ONE = 3,
        /// WRITE_ZEROES must be fast or fail with ENOTSUP.
        FAST_ZERO = 4,
        /// The request has a payload (extended headers).
        PAYLOAD_LEN = 5,
    }
}

wire_enum! {
    /// What an option asks for ("Option types").
    OptionType(u32) {
        /// Choose an export without error replies.
        EXPORT_NAME = 1,
        /// End the session.
        ABORT = 2,
        /// Name the exports.
        LIST = 3,
        /// Upgrade to TLS.
        STARTTLS = 5,
        /// Describe an export.
        INFO = 6,
        /// Describe an export and start transmission.
        GO = 7,
        /// Agree on structured replies.
        STRUCTURED_REPLY = 8,
        /// Name metadata contexts.
        LIST_META_CONTEXT = 9,
        /// Select metadata contexts.
        SET_META_CONTEXT = 10,
        /// Agree on extended headers.
        EXTENDED_HEADERS = 11,
    }
}

wire_enum! {
    /// What an option reply says ("Option reply types"); bit 31 marks errors.
    ReplyType(u32) {
        /// Done.
        ACK = 1,
        /// One export of a LIST.
        SERVER = 2,
        /// One piece of INFO or GO.
        INFO = 3,
        /// One metadata context.
        META_CONTEXT = 4,
        /// The server does not know the option.
        ERR_UNSUP = 1 << 31 | 1,
        /// The server knows the option and will not.
        ERR_POLICY = 1 << 31 | 2,
        /// The option was malformed.
        ERR_INVALID = 1 << 31 | 3,
        /// The platform cannot.
        ERR_PLATFORM = 1 << 31 | 4,
        /// STARTTLS must come first.
        ERR_TLS_REQD = 1 << 31 | 5,
        /// No such export.
        ERR_UNKNOWN = 1 << 31 | 6,
        /// The server is stopping.
        ERR_SHUTDOWN = 1 << 31 | 7,
        /// The client must ask for block sizes.
        ERR_BLOCK_SIZE_REQD = 1 << 31 | 8,
        /// The option or its answer is too large.
        ERR_TOO_BIG = 1 << 31 | 9,
        /// Extended headers must come first.
        ERR_EXT_HEADER_REQD = 1 << 31 | 10,
    }
}

impl ReplyType {
    /// Whether bit 31 marks this reply as an error.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 & 1 << 31 != 0
    }
}

wire_enum! {
    /// Kinds of NBD_REP_INFO.
    InfoType(u16) {
        /// Size and transmission flags.
        EXPORT = 0,
        /// Canonical name.
        NAME = 1,
        /// Text for people.
        DESCRIPTION = 2,
        /// Minimum, preferred and maximum sizes.
        BLOCK_SIZE = 3,
    }
}

wire_enum! {
    /// Kinds of request ("Request types").
    CommandType(u16) {
        /// Read data.
        READ = 0,
        /// Write the payload.
        WRITE = 1,
        /// Finish and close; no reply.
        DISC = 2,
        /// Make acknowledged writes durable.
        FLUSH = 3,
        /// The range is no longer needed.
        TRIM = 4,
        /// Prefetch.
        CACHE = 5,
        /// Make the range read as zero.
        WRITE_ZEROES = 6,
        /// Report extents.
        BLOCK_STATUS = 7,
    }
}

wire_flags! {
    /// Flags of one chunk ("Structured reply flags").
    ChunkFlags(u16) {
        /// The last chunk of its reply.
        DONE = 0,
    }
}

wire_enum! {
    /// Kinds of chunk ("Structured reply types"); bit 15 marks errors.
    ChunkType(u16) {
        /// Nothing but the header.
        NONE = 0,
        /// An offset and data.
        OFFSET_DATA = 1,
        /// An offset and a length that reads as zero.
        OFFSET_HOLE = 2,
        /// A context's id and extents.
        BLOCK_STATUS = 5,
        /// The same with lengths of 64 bits (extended headers).
        BLOCK_STATUS_EXT = 6,
        /// An error and a text.
        ERROR = 1 << 15 | 1,
        /// An error, a text and an offset.
        ERROR_OFFSET = 1 << 15 | 2,
    }
}

wire_enum! {
    /// The errors the spec allows in a reply ("Error values"); zero is success.
    WireError(u32) {
        /// Success.
        OK = 0,
        /// Operation not permitted.
        EPERM = 1,
        /// Input/output error.
        EIO = 5,
        /// Cannot allocate memory.
        ENOMEM = 12,
        /// Invalid argument.
        EINVAL = 22,
        /// No space left on device.
        ENOSPC = 28,
        /// Value too large.
        EOVERFLOW = 75,
        /// Operation not supported.
        ENOTSUP = 95,
        /// Server is in the process of being shut down.
        ESHUTDOWN = 108,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_prints_the_specs_names() {
        assert_eq!(format!("{:?}", OptionType::GO), "GO");
        assert_eq!(format!("{:?}", OptionType(77)), "OptionType(0x4d)");
        let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FUA;
        assert_eq!(format!("{flags:?}"), "0x9(HAS_FLAGS|SEND_FUA)");
    }

    #[test]
    fn magics_are_the_ascii_the_spec_says() {
        assert_eq!(&NBDMAGIC.to_be_bytes(), b"NBDMAGIC");
        assert_eq!(&IHAVEOPT.to_be_bytes(), b"IHAVEOPT");
        assert!(ReplyType::ERR_UNSUP.is_error() && !ReplyType::INFO.is_error());
    }
}
