//! Planted faults: each breaks one rule of the durability contract in a copy of the server, and
//! the simulation must notice every one of them.
//!
//! If the text that a fault replaces is no longer there, the list has rotted and the test fails
//! too. `NBD_MUTANTS=name` runs one.

mod list;

use std::fs::File;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use list::{MUTANTS, Mutant};
use serde_json::Value;
use tests::tool::end_of;

/// The crates under test, and what they need of ours.
const CRATES: [&str; 4] = ["common", "logging", "nbd-server", "recording"];
/// Lives per mode with a planted fault; the ordinary run lives more.
const SEEDS: &str = "1000";
/// How long the simulation may take without a fault. With one, three times what it took: one that
/// takes longer has noticed the fault by never ending.
const FIRST_PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn every_planted_fault_is_noticed() {
    let copy = Copy::make();
    let patience = 3 * copy.time() + Duration::from_secs(10);
    let only = std::env::var("NBD_MUTANTS").ok();
    let chosen = MUTANTS.iter().filter(|mutant| only.as_deref().is_none_or(|name| name == mutant.name));
    let mut survivors = Vec::new();
    for mutant in chosen {
        let started = Instant::now();
        let survived = copy.survives(mutant, patience);
        let verdict = if survived { "SURVIVED" } else { "killed" };
        println!("{verdict:8} {:9} {} ({:.1?})", mutant.rule, mutant.name, started.elapsed());
        if survived {
            survivors.push(mutant.name);
        }
    }
    assert!(survivors.is_empty(), "the simulation did not notice: {survivors:?}");
}

/// A copy of the crates under test, where faults can be planted.
struct Copy(PathBuf);

impl Copy {
    fn make() -> Copy {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a member of a workspace");
        let root = workspace.join("target/mutants");
        let manifest =
            std::fs::read_to_string(workspace.join("Cargo.toml")).expect("the workspace's manifest");
        let members = manifest.lines().find(|line| line.starts_with("members")).expect("a list of members");
        let manifest = manifest.replace(members, &format!("members = {CRATES:?}"));
        // Compiling costs more than the few lives that a fault survives, and nobody will debug it.
        let manifest =
            manifest.replace("opt-level = 2", "opt-level = 0") + "\n[profile.dev]\ndebug = false\n";
        std::fs::create_dir_all(&root).expect("a directory for the copy");
        write_if_changed(&root.join("Cargo.toml"), manifest.as_bytes());
        let lock = std::fs::read(workspace.join("Cargo.lock")).expect("the lock file");
        write_if_changed(&root.join("Cargo.lock"), &lock);
        for member in CRATES {
            copy_tree(&workspace.join(member), &root.join(member));
        }
        Copy(root)
    }

    /// How long the simulation takes when nothing is wrong with the server.
    fn time(&self) -> Duration {
        let simulation = self.build();
        let started = Instant::now();
        assert!(passes(&simulation, FIRST_PATIENCE), "the simulation must pass without a planted fault");
        started.elapsed()
    }

    /// Whether the simulation overlooks a fault.
    fn survives(&self, mutant: &Mutant, patience: Duration) -> bool {
        let file = self.0.join("nbd-server/src").join(mutant.file);
        let source = std::fs::read_to_string(&file).expect("the file is there");
        let places = source.matches(mutant.from).count();
        assert_eq!(places, 1, "{}: {:?} stands {places} times in {}", mutant.name, mutant.from, mutant.file);
        std::fs::write(&file, source.replace(mutant.from, mutant.to)).expect("planted");
        let simulation = std::panic::catch_unwind(AssertUnwindSafe(|| self.build()));
        std::fs::write(&file, source).expect("mended");
        match simulation {
            Ok(simulation) => passes(&simulation, patience),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Builds the simulation; a fault that does not compile proves nothing.
    fn build(&self) -> PathBuf {
        let output = Command::new(env!("CARGO"))
            .args(["test", "--quiet", "--offline", "--package", "nbd-server", "--test", "simulation"])
            .args(["--no-run", "--message-format", "json"])
            .current_dir(&self.0)
            .env("CARGO_TARGET_DIR", self.0.join("target"))
            .output()
            .expect("cargo runs");
        let messages = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "the copy must compile:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let of_simulation = |message: &Value| message["target"]["name"] == "simulation";
        let executable =
            messages.filter(of_simulation).find_map(|m| m["executable"].as_str().map(PathBuf::from));
        executable.expect("cargo tells where the simulation is")
    }
}

/// Runs the simulation until something fails; one that does not end in time has not passed.
fn passes(simulation: &Path, patience: Duration) -> bool {
    let told = simulation.with_extension("log");
    let log = File::create(&told).expect("a log");
    let mut child = Command::new(simulation)
        // Unoptimised, the exhaustive lives take long, and what they find the random ones find too.
        .args(["--skip", "exhaustive::"])
        .env("NBD_SIM_SEEDS", SEEDS)
        .stdout(log)
        .stderr(Stdio::null())
        .spawn()
        .expect("the simulation starts");
    let noticed = || std::fs::read_to_string(&told).is_ok_and(|text| text.contains("FAILED"));
    end_of(&mut child, patience, noticed).is_some_and(|status| status.success())
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory").map(|entry| entry.expect("an entry")) {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy_tree(&source, &target);
        } else {
            write_if_changed(&target, &std::fs::read(&source).expect("a file"));
        }
    }
}

/// Keeps the time stamps of what has not changed, so that cargo rebuilds only what has.
fn write_if_changed(path: &Path, content: &[u8]) {
    if std::fs::read(path).ok().as_deref() != Some(content) {
        std::fs::write(path, content).expect("a copy");
    }
}
