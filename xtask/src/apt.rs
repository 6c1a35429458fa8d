//! What we ask of Debian's package tools: which packages are missing, install them, fetch one without
//! installing it. Knows how to look into another suite of the machine's own mirror without leaving a trace
//! in the machine's apt configuration.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::run::quietly;

/// Which packages apt looks at: the machine's own sources, or those and one more suite.
pub(crate) enum Sources {
    /// What the machine is configured for.
    Own,
    /// The machine's sources plus a suite that exists only in a scratch directory.
    Extended { suite: String, scratch: TempDir },
}

/// Those of `packages` that are not installed.
pub(crate) fn missing<'p>(packages: &[&'p str]) -> Vec<&'p str> {
    packages.iter().copied().filter(|package| version(package).is_none()).collect()
}

/// The installed version of a package.
pub(crate) fn version(package: &str) -> Option<String> {
    let format = "-f=${db:Status-Status} ${Version}";
    let answer = Command::new("dpkg-query").args(["-W", format, package]).output().ok()?;
    let text = String::from_utf8(answer.stdout).ok()?;
    text.strip_prefix("installed ").map(str::to_owned)
}

impl Sources {
    /// The machine's sources extended by `suite` ("bookworm-backports", "bookworm") from the mirror it already uses.
    pub(crate) fn with_suite(suite: &str) -> Result<Sources> {
        let mirror = mirror()?;
        let scratch = tempfile::tempdir()?;
        let parts = scratch.path().join("parts");
        fs::create_dir_all(&parts)?;
        fs::create_dir_all(scratch.path().join("lists/partial"))?;
        copy_machine_sources(&parts)?;
        let keyring = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
        let signed =
            if keyring.exists() { format!(" [signed-by={}]", keyring.display()) } else { String::new() };
        fs::write(parts.join("extra.list"), format!("deb{signed} {mirror} {suite} main\n"))?;
        // apt drops privileges to read these when it downloads as root.
        set_world_readable(scratch.path())?;
        let sources = Sources::Extended { suite: suite.to_owned(), scratch };
        sources.update()?;
        Ok(sources)
    }

    /// Refreshes the package lists.
    pub(crate) fn update(&self) -> Result<()> {
        quietly(self.privileged("apt-get").args(["-q", "update"]))
    }

    /// Installs packages, with no questions asked and nothing recommended on top.
    pub(crate) fn install(&self, packages: &[&str]) -> Result<()> {
        let mut command = self.privileged("apt-get");
        command.args(["-q", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"]);
        command.args(["-o", "Dpkg::Options::=--force-confold"]);
        if let Sources::Extended { suite, .. } = self {
            command.args(["-t", suite]);
        }
        quietly(command.arg("install").args(packages))
    }

    /// Downloads one package into `directory` without installing it.
    pub(crate) fn download(&self, package: &str, directory: &Path) -> Result<PathBuf> {
        let mut command = self.plain("apt-get");
        if is_root() {
            // As root, apt downloads as a user of its own, who may not enter our directories, and warns of it.
            command.args(["-o", "APT::Sandbox::User=root"]);
        }
        quietly(command.args(["-q", "download", package]).current_dir(directory))?;
        let mut entries = fs::read_dir(directory)?.filter_map(Result::ok).map(|entry| entry.path());
        entries
            .find(|path| path.extension() == Some(OsStr::new("deb")))
            .with_context(|| format!("apt-get downloaded no file for {package}"))
    }

    /// Names of the packages that begin with `prefix`.
    pub(crate) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let answer = self.plain("apt-cache").args(["pkgnames", prefix]).output().context("apt-cache")?;
        Ok(String::from_utf8(answer.stdout)?.lines().map(str::to_owned).collect())
    }

    fn plain(&self, program: &str) -> Command {
        self.with_options(Command::new(program))
    }

    fn privileged(&self, program: &str) -> Command {
        let mut command = privileged("env");
        command.args(["DEBIAN_FRONTEND=noninteractive", program]);
        self.with_options(command)
    }

    fn with_options(&self, mut command: Command) -> Command {
        if let Sources::Extended { scratch, .. } = self {
            let at = scratch.path().display();
            command.args(["-o", &format!("Dir::Etc::SourceParts={at}/parts")]);
            command.args(["-o", "Dir::Etc::SourceList=/dev/null"]);
            command.args(["-o", &format!("Dir::State::Lists={at}/lists")]);
            // A cache of its own, or the machine's would describe our scratch sources from now on.
            command.args(["-o", &format!("Dir::Cache::pkgcache={at}/pkgcache.bin")]);
            command.args(["-o", &format!("Dir::Cache::srcpkgcache={at}/srcpkgcache.bin")]);
        }
        command
    }
}

/// A command that runs as root.
pub(crate) fn privileged(program: &str) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["-n", program]);
    command
}

/// True if packages can be installed: as root, or by a sudo that asks nothing.
pub(crate) fn may_install() -> bool {
    is_root() || Command::new("sudo").args(["-n", "true"]).output().is_ok_and(|out| out.status.success())
}

/// The code name of the machine's Debian release, such as "bookworm".
pub(crate) fn codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("no /etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.map(|name| name.trim_matches('"').to_owned()).context("/etc/os-release names no release")
}

/// The address of the Debian mirror the machine uses, found in what apt knows about its own release.
fn mirror() -> Result<String> {
    let main = format!("{}/main", codename()?);
    let answer = Command::new("apt-cache").arg("policy").output().context("apt-cache")?;
    let text = String::from_utf8(answer.stdout)?;
    // Lines read " 500 <address> <suite>/<component> amd64 Packages".
    let address = text.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let address = words.next()?;
        (words.next()? == main).then(|| address.to_owned())
    });
    address.with_context(|| format!("apt knows no source for {main}; run apt-get update"))
}

fn copy_machine_sources(to: &Path) -> Result<()> {
    let list = Path::new("/etc/apt/sources.list");
    if list.exists() {
        fs::copy(list, to.join("machine.list"))?;
    }
    let Ok(parts) = fs::read_dir("/etc/apt/sources.list.d") else { return Ok(()) };
    for part in parts {
        let part = part?.path();
        let kind = part.extension().and_then(OsStr::to_str);
        if let (Some("list" | "sources"), Some(name)) = (kind, part.file_name()) {
            fs::copy(&part, to.join(name))?;
        }
    }
    Ok(())
}

fn set_world_readable(directory: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?)
}

/// True for root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
