//! Makes a Debian machine able to run the demo and every test: packages that are missing, and the guest
//! kernels, which are only unpacked into a cache. Doing it twice does nothing the second time.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use vm_tests::{Kernel, Series};

use crate::apt::{self, Sources};
use crate::janitor::Janitor;
use crate::kernels;
use crate::run::{cargo, quietly};

#[derive(clap::Args)]
pub(crate) struct Args {}

/// The emulator and what the guest's file systems are made of.
const DEMO: &[&str] =
    &["qemu-system-x86", "busybox-static", "e2fsprogs", "xfsprogs", "kmod", "xz-utils", "util-linux"];
/// What makes, checks and mounts file systems.
const HOST: &[&str] = &["e2fsprogs", "xfsprogs", "kmod", "mount"];
/// The real clients and servers the tests set against ours.
const PEERS: &[&str] = &[
    "qemu-utils",
    "nbdkit",
    "libnbd-bin",
    "python3-libnbd",
    "nbd-client",
    "nbd-server",
    "fio",
    "strace",
    "dmsetup",
    "mount",
    "cryptsetup-bin",
    "lvm2",
    "mdadm",
    "btrfs-progs",
    "valgrind",
    // Their parts go into a guest that boots with our package.
    "systemd",
    "udev",
];

/// `cargo xtask install`
pub(crate) fn run(_: &Args) -> Result<()> {
    everything()
}

/// All that `cargo xtask test` needs.
pub(crate) fn everything() -> Result<()> {
    packages(&[DEMO, PEERS].concat())?;
    kernels::fetch()
}

/// What `cargo xtask demo` needs, and no more: it is the first thing a newcomer waits for.
pub(crate) fn for_demo(series: Series) -> Result<()> {
    packages(DEMO)?;
    if Kernel::find(series).is_some() { Ok(()) } else { kernels::fetch_series(series) }
}

/// What `cargo xtask bench` needs; for `vm`, see [`for_demo`].
pub(crate) fn for_bench(vm: bool) -> Result<()> {
    packages(&["fio", "util-linux"])?;
    if vm { for_demo(Series::V6_12) } else { Ok(()) }
}

/// What `cargo xtask bench peers` needs.
pub(crate) fn for_bench_peers(vm: bool) -> Result<()> {
    packages(&["fio", "util-linux", "nbdkit", "qemu-utils", "nbd-server"])?;
    if vm { for_demo(Series::V6_12) } else { Ok(()) }
}

/// What `cargo xtask bench tls` needs.
pub(crate) fn for_bench_tls() -> Result<()> {
    packages(&["fio", "nbd-client"])?;
    for_demo(Series::V6_12)
}

/// What `cargo xtask crash` needs.
pub(crate) fn for_crash() -> Result<()> {
    packages(&["nbdkit", "qemu-utils", "btrfs-progs"])?;
    [Series::V6_1, Series::V6_12].into_iter().try_for_each(for_demo)
}

/// What `cargo xtask demo --host` needs.
pub(crate) fn for_host() -> Result<()> {
    packages(HOST)
}

/// What `cargo xtask audit` needs to watch some servers.
pub(crate) fn for_audit(servers: &[&str]) -> Result<()> {
    packages(&[servers, &["strace"]].concat())
}

/// What `cargo xtask failing-disk` needs, alone or to compare servers.
pub(crate) fn for_failing_disk(peers: bool) -> Result<()> {
    let peers: &[&str] = if peers { &["nbdkit", "qemu-utils"] } else { &[] };
    packages(&[&["e2fsprogs", "mount"], peers].concat())
}

/// What `cargo xtask conformance` needs to compare servers.
pub(crate) fn for_conformance() -> Result<()> {
    packages(&["nbdkit", "qemu-utils", "nbd-server"])
}

/// What `cargo xtask fuzz` needs: libFuzzer is C++.
pub(crate) fn for_fuzz() -> Result<()> {
    packages(&["g++"])?;
    subcommand("cargo-fuzz")
}

/// What `cargo xtask coverage` needs: LLVM's tools from this package.
pub(crate) fn for_coverage(llvm: &str) -> Result<()> {
    packages(&[llvm])?;
    subcommand("cargo-llvm-cov")
}

/// A subcommand of cargo, from crates.io.
fn subcommand(name: &str) -> Result<()> {
    if Command::new(name).arg("--version").output().is_ok() {
        return Ok(());
    }
    eprintln!("installing {name}");
    quietly(cargo().args(["install", "--locked", name]))
}

fn packages(wanted: &[&str]) -> Result<()> {
    let missing = apt::missing(wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if Command::new("apt-get").arg("--version").output().is_err() {
        bail!("this is no Debian machine; install what these Debian packages hold: {names}");
    }
    if !apt::may_install() {
        bail!("neither root nor sudo without a password; install these packages: {names}");
    }
    eprintln!("installing {names}");
    let _quiet = NoDaemons::hold()?;
    install(&missing).with_context(|| format!("could not install these packages: {names}"))
}

/// Installs with the lists at hand, and once more with fresh ones: a new machine has none, and an old list
/// names files the mirror no longer has.
fn install(missing: &[&str]) -> Result<()> {
    match try_install(missing) {
        Ok(()) => Ok(()),
        Err(_) => {
            Sources::Own.update()?;
            try_install(missing)
        }
    }
}

fn try_install(missing: &[&str]) -> Result<()> {
    // Parts of QEMU must be of one version: where some came from backports, the others must too.
    let qemu_is_backport = ["qemu-utils", "qemu-system-common", "qemu-system-data"]
        .iter()
        .filter_map(|package| apt::version(package))
        .any(|version| version.contains("~bpo"));
    let (qemu, rest): (Vec<&str>, Vec<&str>) =
        missing.iter().partition(|package| package.starts_with("qemu"));
    if qemu_is_backport && !qemu.is_empty() {
        let suite = format!("{}-backports", apt::codename()?);
        Sources::with_suite(&suite)?.install(&qemu)?;
        return if rest.is_empty() { Ok(()) } else { Sources::Own.install(&rest) };
    }
    Sources::Own.install(missing)
}

/// While it lives, packages do not start their services: nbd-server is wanted as a program, not as a daemon.
struct NoDaemons {
    janitor: Option<Janitor>,
}

/// Where package scripts ask whether they may start a service.
const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoDaemons {
    fn hold() -> Result<NoDaemons> {
        // One that is there belongs to the machine's owner.
        if Path::new(POLICY).exists() {
            return Ok(NoDaemons { janitor: None });
        }
        let sudo = if apt::is_root() { "" } else { "sudo -n " };
        let janitor = Janitor::watch(&format!("{sudo}rm -f {POLICY}"))?;
        // 101 means "forbidden by policy". Where it cannot be written, services start; the install goes on.
        let written = as_root(&format!("printf '#!/bin/sh\\nexit 101\\n' >{POLICY} && chmod 755 {POLICY}"));
        Ok(NoDaemons { janitor: written.is_ok().then_some(janitor) })
    }
}

impl Drop for NoDaemons {
    fn drop(&mut self) {
        if self.janitor.take().map(drop).is_some() && Path::new(POLICY).exists() {
            eprintln!("{POLICY} is still there and keeps services from being started; delete it");
        }
    }
}

fn as_root(script: &str) -> Result<()> {
    quietly(apt::privileged("sh").args(["-c", script]))
}
