//! What happens between two servers. Each ends the first one, which has acknowledged a write.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use common::proto::WireError;
use rustix::fs::{XattrFlags, listxattr, removexattr, setxattr};
use tests::client::PLAIN;
use tests::tool;
use tests::wait_until;

use crate::scene::{BLOCK, Run, SIZE, Scene, Storage, old};

/// SIGTERM, and an end in good order.
pub(crate) fn stopped(_: &mut Scene, run: Run) -> Result<()> {
    drop(run.client);
    let exit = run.server.terminate();
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    Ok(())
}

/// SIGKILL.
pub(crate) fn killed(_: &mut Scene, run: Run) -> Result<()> {
    run.server.kill();
    Ok(())
}

/// SIGKILL, when everything is stable.
pub(crate) fn killed_after_flush(_: &mut Scene, mut run: Run) -> Result<()> {
    assert_eq!(run.client.flush(), WireError::OK);
    run.server.kill();
    Ok(())
}

/// SIGKILL; what the kernel holds cannot be stored, which it tells whoever syncs first.
pub(crate) fn killed_and_write_back_fails(_: &mut Scene, run: Run) -> Result<()> {
    given_to_the_kernel(&run);
    run.server.kill();
    Ok(())
}

/// The same, and an unmount or the last close is who is told.
pub(crate) fn killed_and_write_back_fails_at_unmount(scene: &mut Scene, run: Run) -> Result<()> {
    given_to_the_kernel(&run);
    run.server.kill();
    scene.failing.as_mut().context("a failing disk")?.remount()
}

fn given_to_the_kernel(run: &Run) {
    wait_until("early-ack to give the write to the kernel", || run.operator.status()["dirty_bytes"] == 0);
}

/// The power of the host is cut: only what is on the medium is there after.
pub(crate) fn power_cut(scene: &mut Scene, run: Run) -> Result<()> {
    let medium = scene.dir().join("medium");
    fs::copy(scene.backing(), &medium)?;
    run.server.kill();
    scene.detach()?;
    fs::copy(&medium, scene.backing())?;
    scene.attach()
}

/// An end in good order, then the storage is taken away and comes back as it was.
pub(crate) fn stopped_and_remounted(scene: &mut Scene, run: Run) -> Result<()> {
    stopped(scene, run)?;
    scene.detach()?;
    scene.attach()
}

/// SIGKILL, then the storage is taken away and comes back.
pub(crate) fn killed_and_remounted(scene: &mut Scene, run: Run) -> Result<()> {
    run.server.kill();
    scene.detach()?;
    scene.attach()
}

/// An older content is written over the present one.
pub(crate) fn restored_in_place(scene: &mut Scene, run: Run) -> Result<()> {
    stopped(scene, run)?;
    let file = OpenOptions::new().write(true).open(scene.path())?;
    file.write_all_at(&old(), 0)?;
    file.sync_all()?;
    Ok(())
}

/// A copy of an earlier orderly end, record and all, takes the place of the present storage.
pub(crate) fn rolled_back(scene: &mut Scene, run: Run) -> Result<()> {
    stopped(scene, run)?;
    let copy = copy_of_storage(scene)?;
    let mut run = scene.start();
    assert_eq!(run.client.write(PLAIN, 0, &[2; BLOCK]), WireError::OK);
    stopped(scene, run)?;
    put_in_place(scene, &copy)
}

/// A copy with all its attributes and times is served where the original was.
pub(crate) fn copied(scene: &mut Scene, run: Run) -> Result<()> {
    stopped(scene, run)?;
    let copy = copy_of_storage(scene)?;
    put_in_place(scene, &copy)
}

/// Other storage of the same size is put in its place.
pub(crate) fn replaced(scene: &mut Scene, run: Run) -> Result<()> {
    stopped(scene, run)?;
    let other = other_path(scene);
    fs::write(&other, vec![7; usize::try_from(SIZE)?])?;
    put_in_place(scene, &other)
}

/// It is made shorter.
pub(crate) fn truncated(scene: &mut Scene, run: Run) -> Result<()> {
    stopped(scene, run)?;
    let file = if scene.storage == Storage::device { scene.backing() } else { scene.path() };
    OpenOptions::new().write(true).open(file).and_then(|file| file.set_len(SIZE / 2))?;
    if scene.storage == Storage::device {
        scene.resize_device()?;
    }
    Ok(())
}

/// One block is changed by somebody else.
pub(crate) fn edited(scene: &mut Scene, run: Run) -> Result<()> {
    stopped(scene, run)?;
    let file = OpenOptions::new().write(true).open(scene.path())?;
    file.write_all_at(&[4; BLOCK], SIZE / 2)?;
    file.sync_all()?;
    Ok(())
}

/// Nothing is left of the record.
pub(crate) fn record_lost(scene: &mut Scene, run: Run) -> Result<()> {
    stopped(scene, run)?;
    for record in records(scene)? {
        match record {
            Record::Attribute(name) => removexattr(scene.path(), name)?,
            Record::File(path) => fs::remove_file(path)?,
        }
    }
    Ok(())
}

/// The record says what no server wrote.
pub(crate) fn record_is_garbage(scene: &mut Scene, run: Run) -> Result<()> {
    stopped(scene, run)?;
    rewrite_records(scene, |record| record.iter().map(|byte| byte ^ 0x5a).collect())
}

/// The record ends in the middle.
pub(crate) fn record_is_cut_short(scene: &mut Scene, run: Run) -> Result<()> {
    stopped(scene, run)?;
    rewrite_records(scene, |record| record[..record.len().min(20)].to_vec())
}

/// A FLUSH fails, then SIGKILL.
pub(crate) fn poisoned_and_killed(scene: &mut Scene, run: Run) -> Result<()> {
    poisoned(scene, run).server.kill();
    Ok(())
}

/// A FLUSH fails, then an orderly end, which cannot make everything durable.
pub(crate) fn poisoned_and_stopped(scene: &mut Scene, run: Run) -> Result<()> {
    let exit = poisoned(scene, run).server.terminate();
    assert_eq!(exit.code, Some(1), "{}", exit.log);
    Ok(())
}

fn poisoned(_: &Scene, mut run: Run) -> Run {
    assert_ne!(run.client.flush(), WireError::OK, "the disk fails");
    assert!(!run.operator.status()["poison"].is_null(), "{}", run.operator.status());
    run
}

/// A copy beside the storage, as `cp -a` makes it.
fn copy_of_storage(scene: &Scene) -> Result<PathBuf> {
    let copy = other_path(scene);
    if scene.storage == Storage::device {
        fs::copy(scene.backing(), &copy)?;
    } else {
        let cp = Path::new("/bin/cp");
        tool::succeed(cp, &[Path::new("-a"), &scene.path(), &copy]);
    }
    Ok(copy)
}

fn other_path(scene: &Scene) -> PathBuf {
    let beside = if scene.storage == Storage::device { scene.backing() } else { scene.path() };
    beside.with_file_name("other")
}

/// Another file takes the place of what is served, as `mv` does it; a device is set up over it anew.
fn put_in_place(scene: &mut Scene, other: &Path) -> Result<()> {
    if scene.storage == Storage::device {
        scene.detach()?;
        fs::rename(other, scene.backing())?;
        scene.attach()?;
    } else {
        fs::rename(other, scene.path())?;
    }
    Ok(())
}

/// Where something is on record.
enum Record {
    Attribute(String),
    File(PathBuf),
}

/// All there is on record about the storage, whatever its form.
fn records(scene: &Scene) -> Result<Vec<Record>> {
    let mut names = vec![0; 4096];
    let len = listxattr(scene.path(), &mut names).unwrap_or(0);
    let names = String::from_utf8(names[..len].to_vec()).expect("attributes have names in text");
    let ours = names.split('\0').filter(|name| name.contains("nbd"));
    let mut records: Vec<Record> = ours.map(|name| Record::Attribute(name.to_owned())).collect();
    if let Ok(entries) = fs::read_dir(scene.state()) {
        for entry in entries {
            records.push(Record::File(entry?.path()));
        }
    }
    assert!(!records.is_empty(), "something is on record");
    Ok(records)
}

fn rewrite_records(scene: &Scene, change: impl Fn(&[u8]) -> Vec<u8>) -> Result<()> {
    for record in records(scene)? {
        match record {
            Record::Attribute(name) => {
                let mut value = vec![0; 4096];
                let len = rustix::fs::getxattr(scene.path(), &name, &mut value)?;
                setxattr(scene.path(), &name, &change(&value[..len]), XattrFlags::REPLACE)?;
            }
            Record::File(path) => {
                let changed = change(&fs::read(&path)?);
                File::create(&path).and_then(|file| file.write_all_at(&changed, 0))?;
            }
        }
    }
    Ok(())
}
