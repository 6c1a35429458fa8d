//! The checks, one row of the table each.

use common::proto::{CommandType, TransmissionFlags};

use super::Owed::{ByAll, ByOurs, ByWritethrough};
use super::failing::{self, Whose};
use super::stable::{self, By};
use super::subject::Theme::{Failure, Order, OwnError, Stability};
use super::{Check, Outcome, Owed, Subject, Theme, ends, order};

const fn row(
    rule: &'static str,
    theme: Theme,
    owed: Owed,
    name: &'static str,
    script: fn(&Subject) -> Outcome,
) -> Check {
    Check { rule, name, theme, owed, script }
}

/// All of them, in the order of the table.
pub const CHECKS: &[Check] = &[
    row("C5", Stability, ByAll, "FLUSH is advertised", |subject| {
        stable::advertises(subject, TransmissionFlags::SEND_FLUSH)
    }),
    row("C6", Stability, ByOurs, "FUA is advertised", |subject| {
        stable::advertises(subject, TransmissionFlags::SEND_FUA)
    }),
    row("C6", Stability, ByAll, "WRITE with FUA is stable before its reply", |subject| {
        stable::fua(subject, CommandType::WRITE)
    }),
    row("C6", Stability, ByAll, "TRIM with FUA is stable before its reply", |subject| {
        stable::fua(subject, CommandType::TRIM)
    }),
    row("C6", Stability, ByAll, "WRITE_ZEROES with FUA is stable before its reply", |subject| {
        stable::fua(subject, CommandType::WRITE_ZEROES)
    }),
    row("C6", Stability, ByWritethrough, "everything is stable before its reply", stable::writethrough),
    row("C5", Stability, ByAll, "FLUSH covers WRITE", |subject| {
        stable::flush(subject, &[CommandType::WRITE], By::Same)
    }),
    row("C5", Stability, ByAll, "FLUSH covers TRIM", |subject| {
        stable::flush(subject, &[CommandType::TRIM], By::Same)
    }),
    row("C5", Stability, ByAll, "FLUSH covers WRITE_ZEROES", |subject| {
        stable::flush(subject, &[CommandType::WRITE_ZEROES], By::Same)
    }),
    row("C5", Stability, ByAll, "FLUSH covers other connections, if MULTI_CONN says so", |subject| {
        stable::flush(subject, &stable::WRITING, By::Another)
    }),
    row("C5", Stability, ByAll, "FLUSH waits for a sync that began after it", stable::crowd),
    row("C6", Failure, ByAll, "WRITE with FUA fails if its sync fails", |subject| {
        failing::fua(subject, CommandType::WRITE)
    }),
    row("C6", Failure, ByAll, "TRIM with FUA fails if its sync fails", |subject| {
        failing::fua(subject, CommandType::TRIM)
    }),
    row("C6", Failure, ByAll, "WRITE_ZEROES with FUA fails if its sync fails", |subject| {
        failing::fua(subject, CommandType::WRITE_ZEROES)
    }),
    row("E1", Failure, ByAll, "FLUSH fails if its sync fails", failing::flush),
    row("E1", Failure, ByAll, "after a failed FLUSH, FLUSH fails again", |subject| {
        failing::flush_again(subject, Whose::Same)
    }),
    row("E1", Failure, ByAll, "after a failed FLUSH, FLUSH fails on other connections", |subject| {
        failing::flush_again(subject, Whose::Another)
    }),
    row("E1", Failure, ByAll, "after a failed FLUSH, FLUSH fails on new connections", |subject| {
        failing::flush_again(subject, Whose::New)
    }),
    row("E1", Failure, ByAll, "after a failed FUA, FLUSH fails", failing::flush_after_fua),
    row("C7", OwnError, ByAll, "a WRITE that cannot be carried out fails", failing::write),
    row("C7", OwnError, ByAll, "a WRITE without space is answered ENOSPC", failing::no_space),
    row("E1", OwnError, ByAll, "with space again, WRITE and FLUSH succeed", failing::space_again),
    row("C1", Order, ByOurs, "a WRITE received in part has no effect", order::half_write),
    row("C4", Order, ByAll, "a dead connection's request never replaces newer data", order::stalled),
    row("C7", Order, ByAll, "a long WRITE_ZEROES zeroes all of its range", |subject| {
        order::long_zeroes(subject, &[])
    }),
    row("C7", Order, ByAll, "the same where the file system cannot zero", |subject| {
        order::long_zeroes(subject, &["fallocate:error=EOPNOTSUPP"])
    }),
    row("C9", Order, ByAll, "DISC loses nothing that was received before", ends::disc),
    row("C9", Order, ByAll, "DISC answers what was received before", ends::disc_answers),
    row("C9", Order, ByOurs, "DISC closes only when all of that is in the file", ends::disc_drains),
    row("§7", Order, ByAll, "SIGTERM leaves acknowledged writes in the file", ends::sigterm),
    row("§7", Order, ByOurs, "SIGTERM makes acknowledged writes stable", ends::sigterm_syncs),
];
