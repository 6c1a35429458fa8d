//! The story told on this machine's own nbd driver. Its power is not cut: the server is killed instead, under a
//! mounted file system. Everything is in one temporary directory, by which the cleaning up knows what is ours.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use vm_tests::{Signal, guest};

use super::machine::{Local, Machine};
use super::screen::Screen;
use super::stage::{Disk, FileSystem, Found, Stage};
use crate::apt;
use crate::install;
use crate::janitor::{Janitor, quoted};
use crate::run::quietly;

/// Tells it, and cleans up in any case. Fails if a promise was broken.
pub(crate) fn tell() -> Result<()> {
    ensure!(apt::is_root(), "--host attaches to this machine's own kernel, which needs root");
    let _module = driver()?;
    install::for_host()?;
    eprintln!("building nbd-server and nbd-attach");
    guest::build_visibly()?;
    let programs = guest::binaries()?;
    let programs = programs.first().and_then(|program| program.parent()).context("no programs were built")?;
    let directory = tempfile::Builder::new().prefix("demo-").tempdir()?;
    let _janitor =
        Janitor::watch(&format!("PATH={}:$PATH\n{}", quoted(programs), tidy_up(directory.path())))?;
    story(&mut Local::new(programs, directory.path())?, &mut Screen::stdout(), directory.path())
}

/// Makes sure that there is an nbd driver. One that was loaded for this goes when the value does.
fn driver() -> Result<Option<Janitor>> {
    if Path::new("/sys/module/nbd").exists() {
        return Ok(None);
    }
    if let Err(error) = quietly(Command::new("modprobe").arg("nbd")) {
        bail!("this machine's kernel has no nbd driver ({error:#}); without --host the demo needs none");
    }
    Janitor::watch("modprobe -r nbd").map(Some)
}

fn story(machine: &mut dyn Machine, screen: &mut Screen, directory: &Path) -> Result<()> {
    let mut stage = Stage { machine, screen };
    let mut outcomes = Vec::new();
    for fs in [FileSystem::Ext4, FileSystem::Xfs] {
        stage.screen.chapter(&format!("{} on this machine's own nbd driver", fs.name()))?;
        outcomes.push((fs, chapter(&mut stage, fs, directory)?));
    }
    stage.screen.chapter("Summary")?;
    for (fs, found) in &outcomes {
        let verdict = if found.everything() { "promise kept" } else { "PROMISE BROKEN" };
        stage.screen.line(&format!("{:<5} server killed: {found}; {verdict}", fs.name()))?;
    }
    ensure!(outcomes.iter().all(|(_, found)| found.everything()), "a promise was broken");
    Ok(())
}

fn chapter(stage: &mut Stage<'_>, fs: FileSystem, directory: &Path) -> Result<Found> {
    let disk = Disk::in_directory(directory, fs);
    stage.say("A temporary file is served, and becomes a block device:")?;
    stage.run(&format!("truncate -s 512M {} && mkdir -p {}", disk.file, disk.mount))?;
    let device = stage.attach(&disk)?;
    stage.run(&format!("nbd-attach status {device}"))?;
    let noted = stage.fill(fs, &device, &disk)?;

    stage.say("The server is killed under the mounted file system, which can only be thrown away now:")?;
    stage.screen.command(stage.machine.prompt(), "kill -KILL %1   # the server")?;
    stage.machine.stop(Signal::Kill)?;
    // What it still wanted to write cannot be written; how it says so is not ours to judge.
    stage.attempt(&format!("umount {}", disk.mount))?;
    stage.attempt(&format!("nbd-attach detach --force {device}"))?;

    stage.say("A new server on the same file, attached and mounted:")?;
    let device = stage.attach(&disk)?;
    let found = stage.find(&noted, &device, &disk)?;
    stage.say(&format!("{found}."))?;
    stage.put_away(fs, &device, &disk)?;
    Ok(found)
}

/// The script that leaves nothing of the story in `directory`, wherever it stopped.
fn tidy_up(directory: &Path) -> String {
    let at = quoted(directory);
    format!(
        "cd /
for second in 1 2 3 4 5 6 7 8 9; do
    if grep -qF {at}/mnt /proc/mounts; then umount {at}/mnt || sleep 1; fi
done
for sys in /sys/block/nbd*; do
    if grep -qF {at} $sys/backend; then nbd-attach detach --force /dev/${{sys##*/}}; fi
done
pid=$(cat {at}/server.pid)
if [ \"$(cat /proc/$pid/comm)\" = nbd-server ]; then kill $pid; fi
rm -rf {at}"
    )
}

impl Disk {
    fn in_directory(directory: &Path, fs: FileSystem) -> Disk {
        let at = directory.display();
        Disk {
            file: format!("{at}/{}.img", fs.name()),
            socket: format!("{at}/nbd.sock"),
            mount: format!("{at}/mnt"),
            durability: "writeback",
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_tests::{Kit, Scene, Series};

    use super::*;
    use crate::demo::machine::Guest;

    /// Machines that build this have no nbd driver; a guest is one that has.
    const KITS: &[Kit] = &[Kit::Ext4, Kit::Xfs, Kit::Ours];
    const NOTHING_LEFT: &str = "! ls -d /sys/block/nbd*/pid /tmp/demo && ! grep /tmp/demo /proc/mounts";

    #[test]
    fn the_story_works_on_a_machine_with_the_driver() {
        Scene::play("demo_host_story", Series::V6_12, KITS, |scene| {
            let mut guest = Guest::new(scene.vm().boot()?);
            guest.vm.run("mkdir /tmp/demo")?;
            story(&mut guest, &mut Screen::dark(), Path::new("/tmp/demo"))?;
            guest.vm.run(&tidy_up(Path::new("/tmp/demo")))?;
            guest.vm.run(NOTHING_LEFT).map(drop)
        });
    }

    #[test]
    fn tidying_up_leaves_nothing_wherever_the_story_stopped() {
        Scene::play("demo_host_tidy", Series::V6_12, KITS, |scene| {
            let mut guest = Guest::new(scene.vm().boot()?);
            let directory = Path::new("/tmp/demo");
            let disk = Disk::in_directory(directory, FileSystem::Ext4);
            guest.vm.run("mkdir -p /tmp/demo/mnt && truncate -s 512M /tmp/demo/ext4.img")?;
            let mut screen = Screen::dark();
            let mut stage = Stage { machine: &mut guest, screen: &mut screen };
            let device = stage.attach(&disk)?;
            stage.fill(FileSystem::Ext4, &device, &disk)?;
            guest.vm.run(&format!("cp /run/spawn/{}.pid /tmp/demo/server.pid", guest.server()))?;
            guest.vm.run(&tidy_up(directory))?;
            guest.vm.wait_exit(&guest.server())?;
            guest.vm.run(NOTHING_LEFT).map(drop)
        });
    }
}
