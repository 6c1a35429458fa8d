//! The real session, layers and durability code on a simulated disk: one thread, no runtime, no
//! socket, every operation of the disk under the test's control.

mod client;
mod disk;
mod durability;
mod early;
mod pipe;
mod session;
mod world;
