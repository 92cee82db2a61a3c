//! A TCP proxy on loopback that passes, delays, swallows or cuts what goes through it. For tests of what lies between.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// It stops accepting when dropped.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Milliseconds before a piece is passed on.
    delay: AtomicU64,
    /// What comes is read, and goes nowhere.
    silent: AtomicBool,
    ended: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// In front of that address.
    pub fn before(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, state) = (listener.local_addr().unwrap(), Arc::new(State::default()));
        let serving = Arc::clone(&state);
        thread::spawn(move || {
            for accepted in listener.incoming() {
                if serving.ended.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(near), Ok(far)) = (accepted, TcpStream::connect(&target)) else { continue };
                for stream in [&near, &far] {
                    stream.set_nodelay(true).unwrap();
                    serving.streams.lock().unwrap().push(stream.try_clone().unwrap());
                }
                pump(near.try_clone().unwrap(), far.try_clone().unwrap(), Arc::clone(&serving));
                pump(far, near, Arc::clone(&serving));
            }
        });
        Self { address, state }
    }

    pub fn url(&self) -> String {
        self.address.to_string()
    }

    pub fn delay(&self, by: Duration) {
        self.state.delay.store(by.as_millis() as u64, Ordering::SeqCst);
    }

    /// Swallows what comes, on connections old and new, or no more.
    pub fn silence(&self, silent: bool) {
        self.state.silent.store(silent, Ordering::SeqCst);
    }

    /// Ends all connections.
    pub fn cut(&self) {
        for stream in self.state.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both); // it may have ended by itself
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        self.cut();
        let _ = TcpStream::connect(self.address); // wakes the accepting thread
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, state: Arc<State>) {
    thread::spawn(move || {
        let mut piece = [0; 16 * 1024];
        while let Ok(length @ 1..) = from.read(&mut piece) {
            thread::sleep(Duration::from_millis(state.delay.load(Ordering::SeqCst)));
            if !state.silent.load(Ordering::SeqCst) && to.write_all(&piece[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both); // the other side may be gone already
    });
}
