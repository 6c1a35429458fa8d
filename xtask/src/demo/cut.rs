//! The story told in a virtual machine: a disk that is lived on when the power goes. Client and server are on the
//! same machine, so that the cut takes both; only the machine's own disk survives, with what was flushed to it.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use vm_tests::{Kernel, Kit, Scene, Series};

use super::machine::Guest;
use super::screen::Screen;
use super::stage::{Disk, FileSystem, Found, Noted, Stage};
use crate::janitor::{Janitor, quoted};

/// One life of a disk, from mkfs over the power cut to what is found.
struct Chapter {
    fs: FileSystem,
    mode: &'static str,
    /// Whether the mode promises that what was fsynced survives.
    promises: bool,
}

struct Outcome {
    chapter: &'static Chapter,
    found: Found,
}

const CHAPTERS: &[Chapter] = &[
    Chapter { fs: FileSystem::Ext4, mode: "writeback", promises: true },
    Chapter { fs: FileSystem::Xfs, mode: "writeback", promises: true },
    Chapter { fs: FileSystem::Ext4, mode: "unsafe", promises: false },
];

/// Sparse, so that only what is written takes space on this machine.
const DISK_BYTES: u64 = 2 << 30;

/// Tells it on the newest kernel of a series. Fails if a promise was broken.
pub(crate) fn tell(series: Series) -> Result<()> {
    let scene = Scene::set("demo", series, &[Kit::Ext4, Kit::Xfs, Kit::Ours])?;
    let traces = [scene.scratch(), scene.logs()].map(quoted).join(" ");
    let janitor = Janitor::watch(&format!("rm -rf {traces}"))?;
    let told = story(&scene, series, &mut Screen::stdout());
    // From here on the scene cleans up itself, and leaves the logs of a failure.
    janitor.dismiss();
    match told {
        Ok(()) => scene.clear(),
        Err(error) => bail!("{error:#}\nlogs are kept in {}", scene.logs().display()),
    }
}

fn story(scene: &Scene, series: Series, screen: &mut Screen) -> Result<()> {
    let start = Instant::now();
    let kernel = Kernel::find(series).context("the kernel vanished from the cache")?;
    screen.say(&format!("A virtual machine with Debian's {} and one disk:", kernel.release.package()))?;
    let disk = scene.disk("disk", DISK_BYTES)?;
    let boot = |screen: &mut Screen| -> Result<Guest> {
        screen.line("  booting …")?;
        let mut vm = scene.vm().disk(&disk).boot()?;
        vm.run("mkdir /srv")?;
        screen.line(&format!("  up after {:.1} s", vm.boot_time().as_secs_f32()))?;
        Ok(Guest::new(vm))
    };
    let mut guest = boot(screen)?;
    Stage { machine: &mut guest, screen }.run("mkfs.ext4 -q /dev/vda && mount /dev/vda /srv")?;

    let mut outcomes = Vec::new();
    for chapter in CHAPTERS {
        screen.chapter(&format!(
            "{} on a disk served with --durability {}",
            chapter.fs.name(),
            chapter.mode
        ))?;
        let disk = chapter.disk();
        let noted = before(&mut Stage { machine: &mut guest, screen }, chapter, &disk)?;
        screen.say("POWER CUT. The machine is gone at once, client, server and all. Power on again:")?;
        guest.vm.power_cut();
        guest = boot(screen)?;
        let found = after(&mut Stage { machine: &mut guest, screen }, chapter, &disk, &noted)?;
        outcomes.push(Outcome { chapter, found });
    }
    guest.vm.power_cut();
    sum_up(screen, &outcomes, start)
}

/// Ordinarily the kernel writes behind everybody's back, which may save by luck what nobody flushed.
const LAZY: &str = "vm.dirty_writeback_centisecs=0 vm.dirty_background_ratio=60 vm.dirty_ratio=80";

/// Everything up to the power cut.
fn before(stage: &mut Stage<'_>, chapter: &Chapter, disk: &Disk) -> Result<Noted> {
    stage.say("No writing by the kernel of its own accord: what survives was flushed, not lucky.")?;
    stage.run(&format!("sysctl -qw {LAZY}"))?;
    stage.say("A file on the machine's disk is served, and becomes a block device:")?;
    stage.run(&format!("truncate -s 512M {0} && sync {0}", disk.file))?;
    let device = stage.attach(disk)?;
    stage.run("nbd-attach status")?;
    let noted = stage.fill(chapter.fs, &device, disk)?;
    stage.say("One more, which nobody fsyncs:")?;
    stage.run(&format!("cp {0}/file-1 {0}/never-fsynced", disk.mount))?;
    Ok(noted)
}

/// Everything from the next boot on.
fn after(stage: &mut Stage<'_>, chapter: &Chapter, disk: &Disk, noted: &Noted) -> Result<Found> {
    stage.say("The file is served and attached as before, and mounted:")?;
    stage.run("mount /dev/vda /srv")?;
    let device = stage.attach(disk)?;
    let found = stage.find(noted, &device, disk)?;
    let verdict = match (chapter.promises, found.everything()) {
        (true, true) => "as promised.",
        (true, false) => "A PROMISE IS BROKEN.",
        (false, false) => {
            "fsync had said yes, but the server was told to ignore flushes.\n\
             That is what unsafe means: for scratch data only."
        }
        (false, true) => "luck: nothing was promised.",
    };
    stage.say(&format!("{found}: {verdict}"))?;
    if chapter.promises && found.everything() {
        let extra = stage.machine.try_run(&format!("cmp {0}/file-1 {0}/never-fsynced", disk.mount))?;
        let fate = if extra.code == 0 { "there by luck" } else { "lost, as it may be: the cut was real" };
        stage.screen.line(&format!("The one that was never fsynced is {fate}."))?;
        stage.put_away(chapter.fs, &device, disk)?;
    }
    Ok(found)
}

/// A line for each chapter; fails if one of them broke a promise.
fn sum_up(screen: &mut Screen, outcomes: &[Outcome], start: Instant) -> Result<()> {
    screen.chapter(&format!("Summary, after {:.0} s", start.elapsed().as_secs_f32()))?;
    let mut broken = 0;
    for Outcome { chapter, found } in outcomes {
        let verdict = match (chapter.promises, found.everything()) {
            (true, true) => "promise kept",
            (true, false) => {
                broken += 1;
                "PROMISE BROKEN"
            }
            (false, _) => "nothing was promised",
        };
        screen.line(&format!(
            "{:<5} {:<10} power cut: {found}; {verdict}",
            chapter.fs.name(),
            chapter.mode
        ))?;
    }
    if broken > 0 {
        bail!("{broken} of the promises were broken");
    }
    Ok(())
}

impl Chapter {
    fn disk(&self) -> Disk {
        Disk {
            file: format!("/srv/{}-{}.img", self.fs.name(), self.mode),
            socket: "/run/nbd.sock".to_owned(),
            mount: "/mnt".to_owned(),
            durability: self.mode,
        }
    }
}
