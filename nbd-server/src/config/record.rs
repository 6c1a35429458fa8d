//! The file and the socket of a recording: opened before the server gives up what it does not need, used once the
//! export is there.

use std::fs::File;
use std::sync::Arc;

use anyhow::Context;
use recording::{Header, Marks, Recorder};

use super::{Config, Globals};

/// A recording that has not begun.
pub struct Recording {
    file: File,
    marks: Option<Marks>,
}

impl Recording {
    /// Makes the file, which must not be a recording already, and listens for marks; nothing where none is wanted.
    pub fn open(globals: &Globals) -> anyhow::Result<Option<Recording>> {
        let Some(path) = &globals.record else { return Ok(None) };
        let listen =
            |path| Marks::listen(path).with_context(|| format!("cannot take marks at {}", path.display()));
        let marks = globals.marks.as_deref().map(listen).transpose()?;
        let file = File::create_new(path).with_context(|| format!("cannot record to {}", path.display()))?;
        Ok(Some(Recording { file, marks }))
    }

    /// Records the one export of the plan from now on.
    pub fn begin(self, config: &Config) -> anyhow::Result<()> {
        let exports = config.exports.all();
        let [export] = &exports[..] else { unreachable!("the plan was checked") };
        let header = Header {
            size: export.shape().size,
            flags: export.flags().0,
            began_ns: 0,
            name: export.name().to_owned(),
        };
        let recorder = Arc::new(Recorder::begin(self.file, header).context("cannot begin the recording")?);
        if let Some(marks) = self.marks {
            marks.take(recorder.clone()).context("cannot take marks")?;
        }
        export.record(recorder);
        Ok(())
    }
}
