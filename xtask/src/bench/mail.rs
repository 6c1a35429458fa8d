//! A load like a mail server's, in a virtual machine: files of up to 96 KiB are created, written, fsynced and renamed
//! with an fsync of the directory, and after every second file a record is appended to a log and fdatasynced. The
//! guest's real ext4 lives on /dev/nbd0; the server is on the host, on the same file as in the other loads, so its
//! disk is the real one. The guest is emulated and slow, which makes differences between the modes look smaller.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use vm_tests::{Fs, HOST_PORT, HostServer, Kit, Scene, Series};

/// Writers at a time.
const WRITERS: u32 = 2;

/// How many files and records became durable per second in one mode.
pub(crate) fn per_second(mode: &str, image: &Path, time: Duration) -> Result<f64> {
    let scene = Scene::set(&format!("bench-{mode}"), Series::V6_12, &[Kit::Ext4, Kit::Ours])?;
    let image = image.to_str().context("the image's path must be text")?;
    let server = HostServer::start(&scene, "server", 0, &["--durability", mode, image])?;
    let mut vm = scene.vm().host_port(server.port()).boot()?;
    let device = vm.attach(&format!("nbd://{HOST_PORT}"), "")?;
    vm.make_fs(Fs::Ext4, &device, "/mnt")?;
    vm.promise("mail", "/mnt", WRITERS, 1)?;
    vm.wait_for_promises("mail", 5)?;
    vm.run_within(time + Duration::from_secs(60), &format!("sleep {}", time.as_secs().max(1)))?;
    let rate = rate(&vm.log("mail")).context("the guest promised nothing")?;
    vm.power_cut();
    server.stop()?;
    scene.clear()?;
    Ok(rate)
}

/// Promises per second of the guest's time; lines read "#12 promised file1-2 3 at 17.25".
fn rate(log: &str) -> Option<f64> {
    let time = |line: &str| line.rsplit_once(" at ")?.1.parse::<f64>().ok();
    let times: Vec<f64> = log.lines().filter_map(time).collect();
    let (first, last) = (times.first()?, times.last()?);
    let count = u32::try_from(times.len() - 1).ok()?;
    (last > first).then(|| f64::from(count) / (last - first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_guests_clock() {
        let log = "#1 promised a 1 at 10.00\nnoise\n#2 promised b 1 at 10.50\n#3 promised a 2 at 11.00\n";
        assert_eq!(rate(log), Some(2.0));
        assert_eq!(rate("#1 promised a 1 at 10.00\n"), None);
        assert_eq!(rate(""), None);
    }
}
