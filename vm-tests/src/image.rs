//! The guest's root file system: busybox, the chosen kits with their libraries, kernel modules and an init script,
//! as an initramfs. Built once per content and kept, since most tests want the same few.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io::BufWriter;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result};

use crate::cpio::{Archive, Member};
use crate::kernel::Kernel;
use crate::kit::Kit;
use crate::modules::{self, Modules, Selection};
use crate::{guest, host, paths};

/// What an image is to hold, by path in the guest.
#[derive(Default)]
pub(crate) struct Image {
    entries: BTreeMap<String, Entry>,
}

#[derive(Hash)]
enum Entry {
    Directory,
    Link(String),
    Text(String),
    Script(&'static str),
    Program(PathBuf),
    Module(PathBuf),
}

/// Loaded when the guest starts: disks and the network.
const BOOT_MODULES: &[&str] = &["virtio_pci", "virtio_console", "virtio_blk", "virtio_net"];
/// There for the asking, in every guest: the driver, its file systems, TLS and the ciphers the kernel wants for it.
const COMMON_MODULES: &[&str] = &[
    "nbd",
    "tls",
    "xfs",
    "loop",
    "crc32c_generic",
    "crc32c_intel",
    "libcrc32c",
    "ctr",
    "gcm",
    "ghash_generic",
    "aesni_intel",
    "aes_generic",
    "chacha20poly1305",
    "chacha_generic",
    // What it is in 7.x.
    "chacha",
    "poly1305_generic",
    "chacha_x86_64",
    "poly1305_x86_64",
    "ghash_clmulni_intel",
    "cryptd",
    "crypto_simd",
];
/// Images kept when a new one is built; old ones are mostly those of binaries since rebuilt.
const IMAGES_KEPT: usize = 32;

impl Image {
    /// An image for `kernel` with the given kits and further modules.
    pub(crate) fn new(kernel: &Kernel, kits: &[Kit], extra_modules: &[String]) -> Result<Image> {
        let mut image = Image::default();
        image.add_skeleton();
        image.add_busybox()?;
        let root = kernel.modules().context("the cached kernel has no modules; run cargo xtask install")?;
        let all = Modules::read(&root)?;
        let extra = extra_modules.iter().map(String::as_str);
        let wanted: Vec<&str> = BOOT_MODULES.iter().chain(COMMON_MODULES).copied().chain(extra).collect();
        image.add_modules(&root, &all.select(&wanted))?;
        for kit in kits {
            image.add_kit(*kit)?;
        }
        Ok(image)
    }

    /// The archive's file, built if no image of this content is there yet.
    pub(crate) fn build(&self) -> Result<PathBuf> {
        let directory = paths::cache().join("images");
        fs::create_dir_all(&directory)?;
        let file = directory.join(format!("{:016x}.cpio", self.key()?));
        // Opened rather than looked for: another test may be forgetting it at this moment.
        if let Ok(found) = File::options().append(true).open(&file) {
            // Recently used images are the ones worth keeping.
            found.set_modified(SystemTime::now())?;
            return Ok(file);
        }
        forget_old(&directory)?;
        let partial = tempfile::NamedTempFile::new_in(&directory)?;
        self.write(partial.as_file())?;
        partial.persist(&file)?;
        Ok(file)
    }

    fn add_skeleton(&mut self) {
        for directory in
            ["dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp", "usr", "usr/bin", "usr/lib", "var"]
        {
            self.add(directory, Entry::Directory);
        }
        self.add("usr/lib64", Entry::Directory);
        // One place for programs and one for libraries, as on a merged-/usr Debian.
        for (link, target) in [
            ("bin", "usr/bin"),
            ("sbin", "usr/bin"),
            ("usr/sbin", "bin"),
            ("lib", "usr/lib"),
            ("lib64", "usr/lib64"),
        ] {
            self.add(link, Entry::Link(target.to_owned()));
        }
        self.add(
            "etc/passwd",
            Entry::Text("root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n".to_owned()),
        );
        self.add("etc/group", Entry::Text("root:x:0:\nnogroup:x:65534:\n".to_owned()));
        self.add("etc/hosts", Entry::Text("127.0.0.1 localhost guest\n::1 localhost\n".to_owned()));
        // What an untyped mount tries: naming xfs here makes the kernel ask for its module.
        self.add("etc/filesystems", Entry::Text("ext4\nxfs\nbtrfs\n".to_owned()));
        self.add("etc/modules", Entry::Text(BOOT_MODULES.join("\n") + "\n"));
        self.add("init", Entry::Script(include_str!("init.sh")));
        self.add("usr/bin/spawn", Entry::Script(include_str!("spawn.sh")));
    }

    fn add_busybox(&mut self) -> Result<()> {
        let busybox = host::program("busybox").context("no busybox; run cargo xtask install")?;
        let list = Command::new(&busybox).arg("--list").output().context("cannot run busybox")?;
        for applet in String::from_utf8(list.stdout)?.lines() {
            self.add(&format!("usr/bin/{applet}"), Entry::Link("busybox".to_owned()));
        }
        self.add("usr/bin/busybox", Entry::Program(busybox));
        Ok(())
    }

    fn add_modules(&mut self, root: &Path, selection: &Selection<'_>) -> Result<()> {
        let version = root.file_name().context("module directory without a name")?.to_string_lossy();
        let home = format!("usr/lib/modules/{version}");
        for (file, source) in selection.files() {
            self.add_with_parents(&format!("{home}/{file}"), Entry::Module(source));
        }
        self.add_with_parents(&format!("{home}/modules.dep"), Entry::Text(selection.index()));
        self.add_with_parents(&format!("{home}/modules.alias"), Entry::Text(selection.aliases()?));
        for index in ["modules.builtin", "modules.order", "modules.softdep"] {
            self.add_with_parents(&format!("{home}/{index}"), Entry::Module(root.join(index)));
        }
        Ok(())
    }

    fn add_kit(&mut self, kit: Kit) -> Result<()> {
        for name in kit.programs() {
            let program =
                host::program(name).with_context(|| format!("no {name}; run cargo xtask install"))?;
            self.add_program(name, &program)?;
        }
        for file in kit.files() {
            self.add_libraries(&file)?;
            self.add_with_parents(&guest_path(&file), Entry::Program(file));
        }
        if kit == Kit::Ours {
            for program in guest::binaries()? {
                let name =
                    program.file_name().context("binary without a name")?.to_string_lossy().into_owned();
                self.add_program(&name, &program)?;
            }
        }
        Ok(())
    }

    fn add_program(&mut self, name: &str, program: &Path) -> Result<()> {
        self.add(&format!("usr/bin/{name}"), Entry::Program(program.to_owned()));
        self.add_libraries(program)
    }

    fn add_libraries(&mut self, of: &Path) -> Result<()> {
        for library in host::shared_libraries(of)? {
            self.add_with_parents(&guest_path(&library), Entry::Program(library));
        }
        Ok(())
    }

    fn add_with_parents(&mut self, path: &str, entry: Entry) {
        for (end, _) in path.match_indices('/') {
            self.entries.entry(path[..end].to_owned()).or_insert(Entry::Directory);
        }
        self.add(path, entry);
    }

    fn add(&mut self, path: &str, entry: Entry) {
        self.entries.insert(path.to_owned(), entry);
    }

    /// Tells images apart by their entries and the size and time of every file behind them.
    fn key(&self) -> Result<u64> {
        let mut hasher = DefaultHasher::new();
        for (path, entry) in &self.entries {
            (path, entry).hash(&mut hasher);
            if let Entry::Program(file) | Entry::Module(file) = entry {
                let meta = fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?;
                (meta.len(), meta.mtime(), meta.mtime_nsec()).hash(&mut hasher);
            }
        }
        Ok(hasher.finish())
    }

    fn write(&self, to: &File) -> Result<()> {
        let mut archive = Archive::new(BufWriter::new(to));
        for (path, entry) in &self.entries {
            match entry {
                Entry::Directory => archive.add(path, &Member::Directory)?,
                Entry::Link(target) => archive.add(path, &Member::Link { target })?,
                Entry::Text(text) => archive.add(path, &file(text.as_bytes(), false))?,
                Entry::Script(text) => archive.add(path, &file(text.as_bytes(), true))?,
                Entry::Module(source) => archive.add(path, &file(&modules::contents(source)?, false))?,
                Entry::Program(source) => archive.add(path, &file(&fs::read(source)?, true))?,
            }
        }
        archive.finish()?;
        Ok(())
    }
}

fn file(contents: &[u8], executable: bool) -> Member<'_> {
    Member::File { contents, executable }
}

/// A host path as the guest's merged /usr has it: without the leading slash, "lib" being "usr/lib".
fn guest_path(host: &Path) -> String {
    let path = host.to_string_lossy();
    let path = path.trim_start_matches('/');
    if path.starts_with("lib") { format!("usr/{path}") } else { path.to_owned() }
}

fn forget_old(directory: &Path) -> Result<()> {
    let mut images = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // Another test's half-written image may have got its name just now, or an old one gone.
        if let Ok(modified) = entry.metadata().and_then(|meta| meta.modified()) {
            images.push((modified, entry.path()));
        }
    }
    images.sort();
    let surplus = images.len().saturating_sub(IMAGES_KEPT);
    for (_, image) in &images[..surplus] {
        // Another test process may have been quicker.
        let _ = fs::remove_file(image);
    }
    Ok(())
}
