//! Decides between KVM and emulation. A host may offer `/dev/kvm` on which a stock kernel never boots, so KVM is
//! used only after a tiny guest has been seen to come up in a few seconds; the answer is kept until the host
//! reboots.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cpio::{Archive, Member};
use crate::patience::Deadline;
use crate::{host, paths, wait};

/// How the guest's processors run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accel {
    Kvm,
    Tcg,
}

/// Long enough for any machine that has real KVM: it boots in under a second.
const PROBE_LIMIT: Duration = Duration::from_secs(6);
const GREETING: &str = "guest-is-up";

impl Accel {
    /// QEMU's word for it.
    pub(crate) fn option(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg,thread=multi",
        }
    }

    /// What to use: `NBD_VM_ACCEL` if it says, KVM if it is seen to work, else emulation.
    pub(crate) fn choose(kernel: &Path) -> Accel {
        static CHOSEN: OnceLock<Accel> = OnceLock::new();
        *CHOSEN.get_or_init(|| match std::env::var("NBD_VM_ACCEL").as_deref() {
            Ok("kvm") => Accel::Kvm,
            Ok("tcg") => Accel::Tcg,
            _ if kvm_boots(kernel) => Accel::Kvm,
            _ => Accel::Tcg,
        })
    }
}

fn kvm_boots(kernel: &Path) -> bool {
    // Paravirtual KVM looks like the real one and hangs a stock kernel.
    if Path::new("/sys/module/kvm_pvm").exists() {
        return false;
    }
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return false;
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let answer = paths::cache().join(format!("kvm-{}", boot.trim()));
    if let Ok(known) = fs::read_to_string(&answer) {
        return known == "boots";
    }
    let boots = probe(kernel).unwrap_or(false);
    // Not being able to remember costs a few seconds next time, no more.
    let _ = fs::write(answer, if boots { "boots" } else { "hangs" });
    boots
}

/// Boots a guest of one program under KVM and waits for its greeting.
fn probe(kernel: &Path) -> Result<bool> {
    let scratch = tempfile::tempdir()?;
    let image = scratch.path().join("image");
    let busybox = fs::read(host::program("busybox").context("no busybox")?)?;
    let mut archive = Archive::new(File::create(&image)?);
    let init = format!("#!/busybox sh\necho {GREETING}\nexec /busybox sleep 60\n");
    archive.add("dev", &Member::Directory)?;
    archive.add("busybox", &Member::File { contents: &busybox, executable: true })?;
    archive.add("init", &Member::File { contents: init.as_bytes(), executable: true })?;
    archive.finish()?;

    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "kvm", "-cpu", "max", "-m", "256", "-nodefaults", "-display", "none", "-no-reboot"]);
    qemu.arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(&image)
        .args(["-append", "console=ttyS0 panic=-1 quiet"]);
    qemu.args(["-serial", "stdio"]);
    let mut qemu = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let console = qemu.stdout.take().context("it was piped")?;
    let up = greets(console, Deadline::after(PROBE_LIMIT));
    qemu.kill()?;
    qemu.wait()?;
    up
}

/// Reads until the greeting, the end, or the deadline.
fn greets(mut console: ChildStdout, until: Deadline) -> Result<bool> {
    let (mut said, mut part) = (Vec::new(), [0; 4096]);
    while wait::readable([&console], until)? == [true] {
        let len = console.read(&mut part)?;
        said.extend_from_slice(&part[..len]);
        if len == 0 || String::from_utf8_lossy(&said).contains(GREETING) {
            return Ok(len > 0);
        }
    }
    Ok(false)
}
