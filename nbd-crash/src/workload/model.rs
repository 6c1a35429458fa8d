//! What a file system may hold after a crash, by what was done to it and what was promised: for every name the files
//! that it may name, for every file the sizes it may have, for every block the contents.
//!
//! A promise settles what it covers; whatever is done later adds what may be there instead. Where POSIX leaves open
//! what file systems all do, the model demands what they do: `fsync` of a file makes the names by which it was made,
//! linked or renamed durable, and the directories above. `fdatasync` settles the name only of a file that was just
//! made.

mod file;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};

use super::operation::Operation;
pub use file::{Contents, FileModel};

/// What a name may be bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thing {
    /// Nothing.
    Absent,
    /// A directory.
    Directory,
    /// A file, by the operation that made it.
    File(u32),
}

#[derive(Debug, Clone)]
struct Name {
    now: Thing,
    /// Whether it is so because the file was made there.
    made: bool,
    may: BTreeSet<Thing>,
    /// Which operation promised it; 0 for none.
    promised: u32,
}

/// All that is known at a time.
#[derive(Debug, Clone, Default)]
pub struct Model {
    names: BTreeMap<String, Name>,
    files: BTreeMap<u32, FileModel>,
    /// The operation that has begun and not ended.
    begun: Option<(u32, Operation)>,
    /// Changes with every mark that matters.
    pub version: u64,
}

/// What is found at a name.
pub enum Found {
    /// Nothing.
    Absent,
    /// A directory.
    Directory,
    /// A file, and its contents.
    File(Contents),
    /// It cannot be looked up or read.
    Unreadable(String),
}

impl Model {
    /// Takes a mark of the interpreter: `> NUMBER OPERATION` before it, `< NUMBER` after it. Others mean nothing here.
    pub fn hear(&mut self, mark: &str) -> anyhow::Result<()> {
        if let Some(rest) = mark.strip_prefix("> ") {
            let (number, operation) = rest.split_once(' ').context("a mark without operation")?;
            let number: u32 = number.parse().context("a mark without number")?;
            let operation: Operation = operation.parse()?;
            self.begin(number, &operation)?;
            self.begun = Some((number, operation));
        } else if let Some(number) = mark.strip_prefix("< ") {
            match self.begun.take() {
                Some((begun, operation)) if number.parse() == Ok(begun) => self.end(begun, &operation),
                _ => bail!("operation {number} ends, and has not begun"),
            }
        } else {
            return Ok(());
        }
        self.version += 1;
        Ok(())
    }

    /// Whether anything has been promised or done yet.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Every name that ever was, in order: directories come before what is in them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// What is wrong with what was found at a name, if anything is.
    pub fn judge(&self, name: &str, found: &Found) -> Option<String> {
        let known = &self.names[name];
        let promised = if known.promised > 0 {
            format!("promised by operation {}", known.promised)
        } else {
            "nothing promised it".to_owned()
        };
        let may = |thing: &Thing| known.may.contains(thing);
        match found {
            Found::Unreadable(why) => Some(format!("/{name} cannot be read: {why}")),
            Found::Absent if may(&Thing::Absent) => None,
            Found::Absent => Some(format!("/{name} is missing ({promised})")),
            Found::Directory if may(&Thing::Directory) => None,
            Found::Directory => Some(format!("/{name} is a directory")),
            Found::File(contents) => {
                let mut faults = Vec::new();
                for thing in &known.may {
                    let Thing::File(number) = thing else { continue };
                    match self.files[number].judge(*number, contents) {
                        None => return None,
                        Some(fault) => faults.push(fault),
                    }
                }
                let fault = faults.into_iter().next_back();
                let fault = fault.unwrap_or_else(|| format!("is there and must not be ({promised})"));
                Some(format!("/{name} {fault}"))
            }
        }
    }

    fn begin(&mut self, number: u32, operation: &Operation) -> anyhow::Result<()> {
        match operation {
            Operation::Create(path) => {
                self.files.insert(number, FileModel::default());
                self.bind(path, Thing::File(number), true);
            }
            Operation::MakeDirectory(path) => self.bind(path, Thing::Directory, true),
            Operation::Rename(from, to) => {
                let thing = self.bound(from)?;
                ensure!(thing != Thing::Directory, "{from} is a directory, and only files are renamed");
                self.bind(to, thing, false);
                self.bind(from, Thing::Absent, false);
            }
            Operation::Link(from, to) => {
                let thing = self.bound(from)?;
                self.bind(to, thing, false);
            }
            Operation::Unlink(path) | Operation::RemoveDirectory(path) => {
                self.bind(path, Thing::Absent, false);
            }
            Operation::Write(path, blocks) | Operation::DirectWrite(path, blocks) => {
                self.file(path)?.write(blocks.first, blocks.count, Some(number));
            }
            Operation::Append(path, count) => {
                let file = self.file(path)?;
                file.write(file.size(), *count, Some(number));
            }
            Operation::Punch(path, blocks) => self.file(path)?.punch(blocks.first, blocks.count),
            Operation::Zero(path, blocks) => self.file(path)?.write(blocks.first, blocks.count, None),
            Operation::Truncate(path, count) => self.file(path)?.truncate(*count),
            // A promise is made at its end.
            Operation::Fsync(path) | Operation::Fdatasync(path) => drop(self.bound(path)?),
            Operation::DirectorySync(_)
            | Operation::Sync
            | Operation::Fill(_)
            | Operation::Noise(_)
            | Operation::Mark(_) => {}
        }
        Ok(())
    }

    fn end(&mut self, number: u32, operation: &Operation) {
        match operation {
            Operation::Fsync(path) | Operation::Fdatasync(path) => {
                let thing = self.names[path].now;
                let all = matches!(operation, Operation::Fsync(_));
                if let Thing::File(file) = thing {
                    self.files.get_mut(&file).expect("it was made").settle(number);
                }
                let bound = |name: &Name| name.now == thing && (all || name.made);
                let names: Vec<_> =
                    self.names.iter().filter(|(_, it)| bound(it)).map(|(path, _)| path.clone()).collect();
                for path in names {
                    for (end, _) in path.match_indices('/') {
                        self.settle(&path[..end], number);
                    }
                    self.settle(&path, number);
                }
            }
            Operation::DirectorySync(directory) => {
                let inside = |path: &str| path.rsplit_once('/').map_or("/", |(above, _)| above) == directory;
                let names: Vec<_> = self.names.keys().filter(|path| inside(path)).cloned().collect();
                names.iter().for_each(|path| self.settle(path, number));
                if directory != "/" {
                    self.settle(directory, number);
                }
            }
            Operation::Sync => {
                let names: Vec<_> = self.names.keys().cloned().collect();
                names.iter().for_each(|path| self.settle(path, number));
                self.files.values_mut().for_each(|file| file.settle(number));
            }
            _ => {}
        }
    }

    fn bind(&mut self, path: &str, thing: Thing, made: bool) {
        let name = self.names.entry(path.to_owned()).or_insert_with(|| Name {
            now: Thing::Absent,
            made: false,
            may: [Thing::Absent].into(),
            promised: 0,
        });
        (name.now, name.made) = (thing, made);
        name.may.insert(thing);
    }

    fn settle(&mut self, path: &str, number: u32) {
        if let Some(name) = self.names.get_mut(path) {
            name.may = [name.now].into();
            name.promised = number;
        }
    }

    fn bound(&self, path: &str) -> anyhow::Result<Thing> {
        match self.names.get(path).map(|name| name.now) {
            None | Some(Thing::Absent) => bail!("there is no {path}"),
            Some(thing) => Ok(thing),
        }
    }

    fn file(&mut self, path: &str) -> anyhow::Result<&mut FileModel> {
        match self.bound(path)? {
            Thing::File(number) => Ok(self.files.get_mut(&number).expect("it was made")),
            _ => bail!("{path} is no file"),
        }
    }
}
