//! The gateway as its neighbours see it: real sockets on every side.

mod control;
mod feed;
mod forward;
mod framing;
mod hold;
mod route;
mod upstream;
mod wire;
mod world;
