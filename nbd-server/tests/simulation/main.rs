//! The real session, layers and durability code on a simulated disk: one thread, no runtime, no
//! socket, every operation of the disk under the test's control.

mod chaos;
mod client;
mod disk;
mod durability;
mod early;
mod exhaustive;
mod life;
mod modes;
mod oracle;
mod pipe;
mod record;
mod session;
mod soak;
mod structured;
mod world;
