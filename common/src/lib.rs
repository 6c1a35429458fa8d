//! The NBD protocol, both roles, without I/O.
