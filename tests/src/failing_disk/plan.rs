//! What is asked of a server on a failing disk: rounds of requests, half of them into the half that cannot be written,
//! each to blocks that no other request of the trial touches.

use common::proto::{CommandFlags, CommandType};

use super::HALF;
use crate::client::{FUA, PLAIN};

/// Bytes of one request.
pub const LEN: usize = 8 << 10;
/// Requests of the write class in a round.
pub const WRITES: usize = 16;
/// Rounds of a trial: so many find blocks of their own.
pub const ROUNDS_MAX: u64 = HALF / (LEN * WRITES) as u64;

/// What a request of the write class does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Writes data that no other request writes.
    Write,
    /// Writes zeroes, and may leave a hole.
    Zero,
    /// Writes zeroes that occupy space.
    ZeroNoHole,
    /// Gives blocks back.
    Trim,
}

/// Where the requests of a round go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Into {
    /// Every other one into the half that cannot be written.
    BothHalves,
    /// None of them.
    GoodHalf,
}

/// A kind of round.
#[derive(Debug)]
pub struct Plan {
    /// How tables call it.
    pub name: &'static str,
    /// Where its requests go.
    pub into: Into,
    /// How many of the write class there are, at most [`WRITES`].
    pub writes: usize,
    /// Sent first, without FUA, and awaited. The rest follow with FUA, all at once.
    pub plain: usize,
    /// Sent together with those with FUA.
    pub flushes: usize,
    /// The last so many are sent together with those with FUA, and without it.
    pub plain_beside: usize,
    /// What the requests do, in turn.
    pub acts: &'static [Act],
}

const BASE: Plan = Plan {
    name: "",
    into: Into::BothHalves,
    writes: WRITES,
    plain: 0,
    flushes: 0,
    plain_beside: 0,
    acts: &[Act::Write],
};

/// The rounds of a trial, in turn.
pub const PLANS: &[Plan] = &[
    Plan { name: "good half", into: Into::GoodHalf, plain: WRITES / 2, flushes: 2, ..BASE },
    Plan { name: "fua", ..BASE },
    Plan { name: "flush", plain: WRITES, flushes: 16, ..BASE },
    Plan { name: "fua beside flush", plain: WRITES / 2, flushes: 8, ..BASE },
    // A pair of requests goes to both halves.
    Plan { name: "trim", acts: &[Act::Write, Act::Write, Act::Trim, Act::Trim], ..BASE },
    Plan {
        name: "zeroes",
        acts: &[Act::Write, Act::Write, Act::Zero, Act::Zero, Act::ZeroNoHole, Act::ZeroNoHole],
        ..BASE
    },
    Plan {
        name: "flush of all kinds",
        plain: WRITES,
        flushes: 4,
        acts: &[Act::Write, Act::Write, Act::Zero, Act::ZeroNoHole, Act::Trim, Act::Write, Act::Write],
        ..BASE
    },
];

/// The first round of each trial: the first plain write after a clean start changes the server's record while the one
/// write that fails is under way.
pub const AFTER_CLEAN_START: Plan =
    Plan { name: "fua after a clean start", writes: 2, plain_beside: 1, ..BASE };

/// A request of the write class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What it does.
    pub act: Act,
    /// Where.
    pub at: u64,
    /// Tells it from every other.
    pub tag: u64,
}

impl Request {
    /// The request of this number in a round of a trial.
    #[must_use]
    pub fn of(plan: &Plan, round: u64, number: usize) -> Request {
        let half = if plan.into == Into::BothHalves && number.is_multiple_of(2) { HALF } else { 0 };
        let act = plan.acts[number % plan.acts.len()];
        let place = round * WRITES as u64 + number as u64;
        Request { act, at: half + place * LEN as u64, tag: round * 1000 + number as u64 + 1 }
    }

    /// Its command and flags.
    #[must_use]
    pub fn command(&self, is_fua: IsFua) -> (CommandType, CommandFlags) {
        let flags = match is_fua {
            IsFua::Yes => FUA,
            IsFua::No => PLAIN,
        };
        match self.act {
            Act::Write => (CommandType::WRITE, flags),
            Act::Zero => (CommandType::WRITE_ZEROES, flags),
            Act::ZeroNoHole => (CommandType::WRITE_ZEROES, flags | CommandFlags::NO_HOLE),
            Act::Trim => (CommandType::TRIM, flags),
        }
    }

    /// The data of a WRITE.
    #[must_use]
    pub fn data(&self) -> Vec<u8> {
        format!("{:15}\n", self.tag).into_bytes().repeat(LEN / 16)
    }

    /// Whether the medium holds what the request promised once it is durable. A TRIM promises nothing about content.
    #[must_use]
    pub fn is_on(&self, medium: &[u8]) -> bool {
        let start = usize::try_from(self.at).expect("disks in tests are small");
        let held = &medium[start..start + LEN];
        match self.act {
            Act::Write => held == self.data(),
            Act::Zero | Act::ZeroNoHole => held.iter().all(|byte| *byte == 0),
            Act::Trim => true,
        }
    }
}

/// Whether a request asks for force unit access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IsFua {
    /// It does.
    Yes,
    /// It does not.
    No,
}
