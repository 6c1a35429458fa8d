//! Judges the judges: whether the oracle in memory and the kernel say the same of a state.

use std::sync::Arc;

use super::Oracle;
use super::ext4::Ext4Oracle;
use super::mount::MountOracle;
use crate::history::History;
use crate::image::Image;

/// The judge of both.
pub struct CompareOracle {
    memory: Ext4Oracle,
    kernel: MountOracle,
}

impl CompareOracle {
    /// One for a history of an ext4 file system whose marks are a workload's.
    pub fn new(history: Arc<History>) -> anyhow::Result<CompareOracle> {
        let kernel = MountOracle::new(history.clone(), "ext4")?;
        Ok(CompareOracle { memory: Ext4Oracle::new(history), kernel })
    }
}

impl Oracle for CompareOracle {
    fn judge(&mut self, time: usize, image: &Arc<Image>) -> anyhow::Result<Vec<String>> {
        let (memory, kernel) = (self.memory.judge(time, image)?, self.kernel.judge(time, image)?);
        if memory.is_empty() == kernel.is_empty() {
            return Ok(Vec::new());
        }
        let said =
            |faults: Vec<String>| if faults.is_empty() { "nothing".to_owned() } else { faults.join("; ") };
        Ok(vec![format!("in memory is wrong: {}. The kernel says: {}", said(memory), said(kernel))])
    }

    fn promises(&mut self, time: usize) -> anyhow::Result<u64> {
        self.memory.promises(time)
    }
}
