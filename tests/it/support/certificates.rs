//! Certificates for tests, made anew by the `openssl` command: an authority, a server's certificate for localhost, a client's,
//! and another authority that signed neither.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::ratelimitd::scratch;

pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    pub fn new() -> Self {
        let folder = scratch("certificates");
        for name in ["ca", "other-ca"] {
            let (key, certificate) = (format!("{name}.key"), format!("{name}.pem"));
            let subject = format!("/CN={name}");
            openssl(
                &folder,
                &["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", &subject, "-keyout", &key, "-out", &certificate],
            );
        }
        for (name, names) in [("server", "subjectAltName=DNS:localhost"), ("client", "subjectAltName=DNS:client")] {
            let (key, request, certificate, subject) =
                (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"), format!("/CN={name}"));
            openssl(
                &folder,
                &["req", "-newkey", "rsa:2048", "-nodes", "-subj", &subject, "-addext", names, "-keyout", &key, "-out", &request],
            );
            let signing = ["x509", "-req", "-in", &request, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"];
            openssl(&folder, &[&signing[..], &["-copy_extensions", "copy", "-out", &certificate]].concat());
        }
        Self { folder }
    }

    /// The path of one of ca.pem, other-ca.pem, server.pem, server.key, client.pem, client.key.
    pub fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }
}

fn openssl(folder: &Path, args: &[&str]) {
    let made = Command::new("openssl").args(args).current_dir(folder).output();
    let made = made
        .unwrap_or_else(|error| panic!("these tests need openssl: `apt-get install openssl`, or run them all by `./tests/run`: {error}"));
    assert!(made.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&made.stderr));
}
