//! Certificates for a broker and its clients, made by the `openssl` command as in the README.

use std::path::{Path, PathBuf};
use std::process::Command;

use rabbitmq_rpc::TlsFiles;

use crate::scratch;

/// A directory of PEM files: what `broker.sh --tls` reads (`ca.pem`, `server.pem`,
/// `server-key.pem`), a client's certificate and key, and invalid ones.
pub struct Certificates {
    directory: PathBuf,
}

/// The common name in the client's certificate, by which EXTERNAL logs in.
pub const CLIENT: &str = "client-by-certificate";

impl Certificates {
    /// In a directory of this name, which no other test uses.
    pub fn make(name: &str) -> Certificates {
        let certificates = Certificates { directory: scratch::directory(name) };
        certificates.authority("ca");
        certificates.authority("other-ca");
        certificates.signed("server", "broker", "ca", 30);
        certificates.signed("expired-server", "broker", "ca", 0);
        certificates.signed("client", CLIENT, "ca", 30);
        certificates.signed("expired-client", CLIENT, "ca", 0);
        certificates.signed("foreign-client", CLIENT, "other-ca", 30);
        certificates
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    /// The files of a client that trusts `ca` and has the certificate called `client`, if any.
    pub fn files(&self, ca: &str, client: Option<&str>) -> TlsFiles {
        TlsFiles {
            ca: Some(self.path(&format!("{ca}.pem"))),
            cert: client.map(|client| self.path(&format!("{client}.pem"))),
            key: client.map(|client| self.path(&format!("{client}-key.pem"))),
        }
    }

    fn authority(&self, name: &str) {
        self.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 \
             -subj /CN={name} -keyout {name}-key.pem -out {name}.pem"
        ));
    }

    /// Each is for the host name `localhost`, and none for 127.0.0.1. A certificate of 0 days
    /// expires after a second, which is before a broker has started.
    fn signed(&self, name: &str, common_name: &str, authority: &str, days: i32) {
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={common_name} \
             -addext subjectAltName=DNS:localhost -keyout {name}-key.pem -out {name}.csr"
        ));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA {authority}.pem -CAkey {authority}-key.pem \
             -CAcreateserial -days {days} -copy_extensions copy -out {name}.pem"
        ));
    }

    /// Replaces a client's certificate and then its key, as an operator does by two `mv`.
    pub fn renew(&self, name: &str, between: impl FnOnce()) {
        self.signed("renewed", CLIENT, "ca", 30);
        let replace = |end: &str| {
            let [from, to] = ["renewed", name].map(|name| self.path(&format!("{name}{end}")));
            std::fs::rename(from, to).unwrap();
        };
        replace(".pem");
        between();
        replace("-key.pem");
    }

    /// The same key under a passphrase.
    pub fn encrypted(&self, name: &str) -> PathBuf {
        self.openssl(&format!(
            "pkey -in {name}.pem -aes128 -passout pass:word -out {name}-aes.pem"
        ));
        self.path(&format!("{name}-aes.pem"))
    }

    fn openssl(&self, args: &str) {
        let mut command = Command::new("openssl");
        command.args(args.split_whitespace()).current_dir(&self.directory);
        let done = command.output().unwrap_or_else(|error| {
            panic!("openssl cannot be run ({error}); on Debian: apt-get install openssl")
        });
        let stderr = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "openssl {args}: {stderr}");
    }
}
