//! A network between a process and the broker that can be cut, or slow.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// The time between checks whether the network is cut.
const LOOK: Duration = Duration::from_millis(50);

/// Passes connections on to a port. While it is cut, nothing arrives and no connection ends, as
/// with a cable that is pulled.
pub struct Proxy {
    port: u16,
    cut: Arc<AtomicBool>,
    /// The most bytes a second of each connection and direction; 0 for any number.
    rate: Arc<AtomicUsize>,
}

impl Proxy {
    pub fn to(target: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let cut = Arc::new(AtomicBool::new(false));
        let (is_cut, rate) = (cut.clone(), Arc::new(AtomicUsize::new(0)));
        let current = rate.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                let pairs =
                    [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)];
                for (from, to) in pairs {
                    let (is_cut, rate) = (is_cut.clone(), current.clone());
                    std::thread::spawn(move || pass(from, to, &is_cut, &rate));
                }
            }
        });
        Proxy { port, cut, rate }
    }

    /// The address of the cluster called `name`, through this.
    pub fn url(&self, name: &str) -> String {
        format!("nats://127.0.0.1:{}/{name}", self.port)
    }

    /// From now on at most `rate` bytes a second pass; with 0 as many as there are.
    pub fn limit(&self, rate: usize) {
        self.rate.store(rate, Ordering::Relaxed);
    }

    pub fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
        // A thread that is in `read` sees the change after its timeout.
        std::thread::sleep(2 * LOOK);
    }
}

/// Copies what arrives. What arrives while the network is cut is lost, with its connection: TCP
/// would send it again, and in the end give up.
fn pass(mut from: TcpStream, mut to: TcpStream, cut: &AtomicBool, rate: &AtomicUsize) {
    from.set_read_timeout(Some(LOOK)).unwrap();
    let (mut buffer, mut lost) = (vec![0; 64 << 10], false);
    loop {
        let is_cut = cut.load(Ordering::Relaxed);
        if lost && !is_cut {
            break;
        }
        match from.read(&mut buffer) {
            Ok(0) if !is_cut => break,
            Ok(0) => std::thread::sleep(LOOK),
            Ok(_) if is_cut => lost = true,
            Ok(count) => {
                if to.write_all(&buffer[..count]).is_err() {
                    break;
                }
                let rate = rate.load(Ordering::Relaxed);
                if rate > 0 {
                    std::thread::sleep(Duration::from_secs_f64(count as f64 / rate as f64));
                }
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    to.shutdown(std::net::Shutdown::Both).ok();
    from.shutdown(std::net::Shutdown::Both).ok();
}
