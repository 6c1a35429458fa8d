//! Proves the harness: that a guest boots on both kernels, that what is said about a command is true, that
//! deadlines, signals and power cuts do what they say, and that nobody's output mixes with another's.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vm_tests::{CommandFailed, Deadline, Scene, Series, Signal, on_both_kernels, on_every_kernel};

on_both_kernels!(commands);
/// A command's output is its own, whatever the kernel says meanwhile, and its exit code is told.
fn commands(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    ensure!(vm.run("echo one; echo two >&2")? == "one\ntwo");
    ensure!(vm.run("printf 'no line end, \"quotes\", ü'")? == "no line end, \"quotes\", ü");
    ensure!(vm.run("echo '<4>from the kernel' >/dev/kmsg; echo from the command")? == "from the command");
    ensure!(vm.console().contains("from the kernel"));

    let failure = vm.run("echo why; exit 7").err().context("a failing command must be an error")?;
    let failed = failure.downcast_ref::<CommandFailed>().context("and be a CommandFailed")?;
    ensure!((failed.finished.code, failed.finished.output.as_str()) == (7, "why"));
    ensure!(vm.try_run("kill -KILL $$")?.code == 137);
    ensure!(vm.run("nproc")? == "2");
    vm.power_off().map(drop)
}

on_both_kernels!(hung_boots);
/// A guest that does not come up in time is given another chance, but not for ever.
fn hung_boots(scene: &Scene) -> Result<()> {
    let error =
        scene.vm().boot_limit(Duration::from_millis(1)).boot().err().context("no guest is that fast")?;
    let words = format!("{error:#}");
    ensure!(words.contains("the guest hangs in boot 3"), "{words}");
    Ok(())
}

on_both_kernels!(silent_ends);
/// So is a machine that ends before its kernel said a word; what QEMU said is told.
fn silent_ends(scene: &Scene) -> Result<()> {
    let error = scene.vm().disk("/nowhere").boot().err().context("a machine without its disk")?;
    let words = format!("{error:#}");
    ensure!(words.contains("the guest ended (exit status: 1) in boot 3"), "{words}");
    ensure!(words.contains("QEMU said") && words.contains("Could not open '/nowhere'"), "{words}");
    Ok(())
}

on_every_kernel!(drivers);
/// What the tests of the driver take for granted is in every image, and can be asked for by any name.
fn drivers(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().module("dm-log-writes").boot()?;
    for module in ["nbd", "xfs", "loop", "tcp-ulp-tls", "dm-log-writes"] {
        vm.run(&format!("modprobe {module}"))?;
    }
    let modules = vm.run("cut -d' ' -f1 /proc/modules")?;
    for module in ["nbd", "xfs", "tls", "dm_log_writes"] {
        ensure!(modules.lines().any(|line| line == module), "{module} is not among {modules}");
    }
    ensure!(vm.run("cat /sys/block/nbd0/size")? == "0");
    vm.run("grep -q ext4 /proc/filesystems")?;
    Ok(())
}

on_both_kernels!(background);
/// Spawned commands are heard, signalled and outlived one by one.
fn background(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    vm.spawn("sleeper", "exec sleep 1000")?;
    vm.spawn("counter", "i=0; while usleep 50000; do i=$((i+1)); echo \"count $i\"; done")?;
    ensure!(vm.wait_for("counter", "count 5")? == "count 5");
    ensure!(vm.run("cat /proc/$(cat /run/spawn/sleeper.pid)/comm")? == "sleep");
    ensure!(vm.log("sleeper").is_empty());
    vm.kill("counter", Signal::Kill)?;
    ensure!(vm.wait_exit("counter")? == 137);
    vm.kill("sleeper", Signal::Term)?;
    ensure!(vm.wait_exit("sleeper")? == 143);

    vm.spawn("counter", "echo again; exit 3")?;
    ensure!(vm.wait_exit("counter")? == 3);
    ensure!(vm.log("counter").ends_with("again\n"));
    vm.spawn("brief", "true")?;
    ensure!(vm.wait_for("brief", "never said").is_err());
    Ok(())
}

on_both_kernels!(deadline);
/// A command that hangs ends the test with an account of what the guest was doing.
fn deadline(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    let error =
        vm.run_within(Duration::from_secs(2), "echo before; sleep 1234").err().context("no deadline")?;
    let account = error.to_string();
    ensure!(account.contains("before") && account.contains("sleep 1234"), "{account}");
    ensure!(vm.run("true").is_err(), "a stuck guest takes no more commands");
    Ok(())
}

on_both_kernels!(panic);
/// A kernel that dies is noticed at once, not after a deadline.
fn panic(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    let error = vm.run("echo c >/proc/sysrq-trigger").err().context("nobody noticed")?;
    ensure!(error.to_string().contains("sysrq triggered crash"), "{error}");
    Ok(())
}

on_both_kernels!(own_programs, Ours);
/// Our programs run in the guest, where there are no libraries.
fn own_programs(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    for program in ["nbd-server", "nbd-attach"] {
        vm.run(&format!("{program} --help"))?;
    }
    Ok(())
}

on_both_kernels!(power, Ext4);
/// A power cut loses what was only in the guest's memory and nothing that reached the disk; the next machine
/// finds the same disk.
fn power(scene: &Scene) -> Result<()> {
    let disk = scene.disk("disk", 64 << 20)?;
    let mut vm = scene.vm().disk(&disk).boot()?;
    vm.run("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt")?;
    vm.run("echo kept >/mnt/kept && sync -f /mnt && echo lost >/mnt/lost")?;
    vm.spawn("witness", "echo seen; exec sleep 1000")?;
    vm.wait_for("witness", "seen")?;
    let remains = vm.power_cut();
    ensure!(remains.log("witness") == "seen\n");

    let mut vm = scene.vm().disk(&disk).boot()?;
    vm.run("mount /dev/vda /mnt")?;
    ensure!(vm.run("cat /mnt/kept")? == "kept");
    ensure!(vm.try_run("grep lost /mnt/lost")?.code != 0, "what was never written must be gone");
    Ok(())
}

/// Names the file in which [`held`] tells its machine's process; without it that test has nothing to do.
const HOLD: &str = "NBD_VM_HOLD";

/// A test that is killed takes its machine with it.
#[test]
fn no_machine_outlives_its_test() {
    Scene::play("outlives", Series::V6_1, &[], |scene| {
        let told = scene.scratch().join("pid");
        let mut test = Command::new(std::env::current_exe()?);
        let mut test =
            test.args(["--exact", "harness::held"]).env(HOLD, &told).stdout(Stdio::null()).spawn()?;
        let pid: u32 = loop {
            ensure!(test.try_wait()?.is_none(), "the held test ended");
            if let Some(pid) =
                fs::read_to_string(&told).ok().and_then(|text| text.strip_suffix('.')?.parse().ok())
            {
                break pid;
            }
            thread::sleep(Duration::from_millis(50));
        };
        let machine = PathBuf::from(format!("/proc/{pid}/exe"));
        ensure!(fs::read_link(&machine)?.to_string_lossy().contains("qemu-system"), "{pid} is no QEMU");
        test.kill()?;
        test.wait()?;
        let deadline = Deadline::after(Duration::from_secs(10));
        while fs::read_link(&machine).is_ok() {
            ensure!(!deadline.has_passed(), "QEMU {pid} still runs");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    });
}

/// Not a test of its own: what [`no_machine_outlives_its_test`] kills.
#[test]
fn held() {
    let Some(tell) = std::env::var_os(HOLD) else { return };
    let scene = Scene::set("held", Series::V6_1, &[]).unwrap();
    let vm = scene.vm().boot().unwrap();
    // The end mark keeps a number half written from being taken for a whole one.
    fs::write(tell, format!("{}.", vm.pid())).unwrap();
    thread::sleep(Duration::from_secs(120));
}
