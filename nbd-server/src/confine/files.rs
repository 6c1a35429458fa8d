//! Which files can be opened from now on, and that TCP leads nowhere: landlock.
//!
//! What is open already, sockets that listen included, is not touched.

use std::path::Path;

use anyhow::{Context, bail};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};

use super::Reach;

/// What is asked for; a kernel that knows less does what it can.
const WANTED: ABI = ABI::V6;

pub(super) fn confine(reach: &Reach) -> anyhow::Result<&'static str> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(WANTED))?
        .handle_access(AccessNet::from_all(WANTED))?
        .scope(Scope::Signal)?
        .create()?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = read | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    let keep = write | AccessFs::MakeReg | AccessFs::RemoveFile;
    let allowed = [
        (&reach.read, read),
        (&reach.write, write),
        (&reach.keep, keep),
        (&reach.sockets, AccessFs::RemoveFile.into()),
    ];
    for (paths, access) in allowed {
        for path in paths {
            rules = allow(rules, path, access).with_context(|| path.display().to_string())?;
        }
    }
    match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Ok("landlock"),
        RulesetStatus::PartiallyEnforced => Ok("landlock, as far as this kernel has it"),
        RulesetStatus::NotEnforced => bail!("this kernel has no landlock"),
    }
}

/// What is not there needs no rule: opening it will say so.
fn allow(rules: RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> anyhow::Result<RulesetCreated> {
    let Ok(metadata) = path.metadata() else { return Ok(rules) };
    let access = if metadata.is_dir() { access } else { access & AccessFs::from_file(WANTED) };
    Ok(rules.add_rule(PathBeneath::new(PathFd::new(path)?, access))?)
}
