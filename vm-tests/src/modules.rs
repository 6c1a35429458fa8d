//! Kernel modules for the guest: the wanted ones, everything they depend on, and an index that the guest's
//! `modprobe` (and the kernel's own module requests) can use.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The modules of one kernel and how they depend on each other.
pub(crate) struct Modules {
    root: PathBuf,
    /// By module name: its file and the files of all its dependencies, relative to the root.
    dependencies: BTreeMap<String, Vec<String>>,
}

/// A choice of modules, closed under dependency.
pub(crate) struct Selection<'m> {
    modules: &'m Modules,
    /// Files, with the module's own dependencies.
    chosen: BTreeMap<String, Vec<String>>,
}

impl Modules {
    /// Reads the index `depmod` made in a kernel's module directory.
    pub(crate) fn read(root: &Path) -> Result<Modules> {
        let index = root.join("modules.dep");
        let text = fs::read_to_string(&index).with_context(|| format!("cannot read {}", index.display()))?;
        let dependencies = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(file, needs)| {
                let files = std::iter::once(file).chain(needs.split_whitespace());
                (module_name(file), files.map(str::to_owned).collect())
            })
            .collect();
        Ok(Modules { root: root.to_owned(), dependencies })
    }

    /// The named modules and what they need. A name without a file is taken to be built in: what is a module in
    /// one series is often part of the kernel in the next.
    pub(crate) fn select(&self, names: &[&str]) -> Selection<'_> {
        let mut chosen = BTreeMap::new();
        for name in names {
            let files = self.dependencies.get(&module_name(name)).into_iter().flatten();
            for file in files {
                let needs = self.dependencies.get(&module_name(file)).map_or(&[][..], |files| &files[1..]);
                chosen.insert(file.clone(), needs.to_vec());
            }
        }
        Selection { modules: self, chosen }
    }
}

impl Selection<'_> {
    /// Each module as the guest sees it: its path under the module directory, always uncompressed there, and the
    /// file it comes from.
    pub(crate) fn files(&self) -> impl Iterator<Item = (String, PathBuf)> {
        self.chosen.keys().map(|file| (uncompressed(file), self.modules.root.join(file)))
    }

    /// The guest's `modules.dep`.
    pub(crate) fn index(&self) -> String {
        let line = |(file, needs): (&String, &Vec<String>)| {
            let needs: String = needs.iter().map(|need| format!(" {}", uncompressed(need))).collect();
            format!("{}:{needs}\n", uncompressed(file))
        };
        self.chosen.iter().map(line).collect()
    }

    /// The lines of `modules.alias` about chosen modules: by these the kernel asks for "tcp-ulp-tls" and the like.
    pub(crate) fn aliases(&self) -> Result<String> {
        let text = fs::read_to_string(self.modules.root.join("modules.alias"))?;
        let names: Vec<String> = self.chosen.keys().map(|file| module_name(file)).collect();
        let ours =
            |line: &&str| line.rsplit(' ').next().is_some_and(|name| names.contains(&module_name(name)));
        Ok(text.lines().filter(ours).map(|line| format!("{line}\n")).collect())
    }
}

/// A module file's bytes, uncompressed.
pub(crate) fn contents(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(file).with_context(|| format!("cannot read {}", file.display()));
    }
    let out = Command::new("xz").arg("-dc").arg(file).output().context("cannot run xz")?;
    ensure!(
        out.status.success(),
        "cannot unpack {}: {}",
        file.display(),
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(out.stdout)
}

fn uncompressed(file: &str) -> String {
    file.strip_suffix(".xz").unwrap_or(file).to_owned()
}

/// Files say "-" where the kernel says "_", or not; names use "_".
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    let stem = name.split(".ko").next().unwrap_or(name);
    stem.replace('-', "_")
}
