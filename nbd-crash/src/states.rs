//! Which states are looked at: at each crash point none, all, each write alone and each alone missing, every subset
//! where few could be lost, random ones where many could, and writes torn.

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use crate::history::{Happening, History};
use crate::image::SECTOR;
use crate::state::{Kept, Part};

/// Of how many writes every subset is looked at.
const EXHAUSTIVE_MAX: usize = 4;
/// How probable it is that a write is kept, in turn.
const CHANCES: [f64; 4] = [0.5, 0.2, 0.8, 0.95];
/// How probable it is that a write that is kept is torn, in every other random subset.
const TEAR: f64 = 0.15;

/// When to crash: just before each durable promise is made, when most can be lost; right after each mark, when most
/// was promised; and at the end. Who knows only of promises that are marked looks from the first mark on; for others the
/// moment right after a durable answer is one, too.
pub fn crash_points(history: &History, only_after_marks: bool) -> Vec<usize> {
    let first = history.events.iter().position(|event| matches!(event.what, Happening::Mark(_)));
    let from = first.filter(|_| only_after_marks).map_or(0, |mark| mark + 1);
    let mut points: Vec<usize> = Vec::new();
    for (now, event) in history.events.iter().enumerate() {
        let promises = match event.what {
            Happening::FlushAnswered(_) => true,
            Happening::WriteAnswered(write) => history.writes[write].fua,
            Happening::Mark(_) => {
                points.push(now + 1);
                false
            }
            _ => false,
        };
        if promises {
            points.push(now);
            // Where there are marks, one tells what follows from it.
            points.extend((!only_after_marks).then_some(now + 1));
        }
    }
    points.push(history.events.len());
    points.retain(|point| *point >= from);
    points.dedup();
    points
}

/// How states are chosen.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    /// Decides what is random.
    pub seed: u64,
    /// The unit in which writes tear, in bytes; writes of no more never do.
    pub unit: u64,
    /// Random subsets at each point in a round.
    pub random: usize,
}

/// The subsets of what could be lost that are looked at in a round at a point; the first round has those that are not
/// random, too.
pub fn subsets(
    history: &History,
    volatile: &[usize],
    choice: Choice,
    round: u64,
    point: u64,
) -> Vec<Vec<Kept>> {
    let whole = |indices: &mut dyn Iterator<Item = usize>| indices.map(Kept::whole).collect::<Vec<_>>();
    let all = volatile.iter().copied();
    let mut out = Vec::new();
    if round == 0 {
        if volatile.len() <= EXHAUSTIVE_MAX {
            for bits in 0..1_usize << volatile.len() {
                out.push(whole(
                    &mut all.clone().enumerate().filter(|(n, _)| bits & 1 << n != 0).map(|(_, w)| w),
                ));
            }
        } else {
            out.push(Vec::new());
            out.push(whole(&mut all.clone()));
            for one in volatile {
                out.push(whole(&mut all.clone().filter(|write| write != one)));
                out.push(vec![Kept::whole(*one)]);
            }
        }
    }
    if volatile.is_empty() {
        return out;
    }
    let mut random = StdRng::seed_from_u64(choice.seed ^ round.rotate_left(48) ^ point.rotate_left(16));
    for number in 0..choice.random {
        let chance = CHANCES[number % CHANCES.len()];
        let mut kept = whole(&mut all.clone().filter(|_| random.random_bool(chance)));
        if number % 2 == 1 {
            for kept in &mut kept {
                let write = &history.writes[kept.write];
                if write.length > choice.unit && random.random_bool(TEAR) {
                    kept.part = torn(write.sectors(), choice.unit / SECTOR, &mut random);
                }
            }
        }
        out.push(kept);
    }
    out
}

/// The first units of a write or, if it is short, any of them.
fn torn(sectors: u64, unit: u64, random: &mut impl Rng) -> Part {
    let units = sectors.div_ceil(unit);
    if sectors > 64 || random.random_bool(0.5) {
        return Part::First(random.random_range(0..units) * unit);
    }
    let chosen: u64 = random.random();
    let bits = (0..sectors).filter(|sector| chosen & 1 << (sector / unit) != 0).map(|sector| 1 << sector);
    Part::Bits(bits.fold(0, |all, bit| all | bit))
}
