//! The certificate authority that agents, server and operators trust: making and judging certificates.
//!
//! Nothing here stores anything: see [`certgen`](crate::certgen) for that. Keys are ECDSA on P-256.

use std::{collections::BTreeSet, time::SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, pem::Pem};

/// Certificates are valid from so long before they are made: clocks of nodes differ.
const EARLIER: Duration = Duration::minutes(5);

/// Why a certificate can't be made, or read.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Making keys or certificates failed.
    #[error("making {what}: {error}")]
    Make {
        /// What was to be made.
        what: String,
        /// Why it failed.
        error: rcgen::Error,
    },
    /// Text that is not what it should be.
    #[error("{what} can't be used: {why}")]
    Unusable {
        /// What was read.
        what: String,
        /// What is wrong with it.
        why: String,
    },
}

/// A certificate and its private key, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate, perhaps with others after it.
    pub certificate: String,
    /// The private key: PKCS #8.
    pub key: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys are not for logs.
        f.debug_struct("Pair").finish_non_exhaustive()
    }
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Valid from then on.
    pub from: OffsetDateTime,
    /// Valid until then.
    pub until: OffsetDateTime,
    /// DNS names that it is for.
    pub names: BTreeSet<String>,
    /// Whether it may sign others.
    pub signs: bool,
}

impl Facts {
    /// Whether it is valid at `now`.
    #[must_use]
    pub fn valid(&self, now: OffsetDateTime) -> bool {
        self.from <= now && now < self.until
    }

    /// Whether less than a third of its life is left.
    #[must_use]
    pub fn ends_soon(&self, now: OffsetDateTime) -> bool {
        self.until - now < (self.until - self.from) / 3
    }
}

/// A certificate authority that signs.
pub struct Authority {
    pair: Pair,
    facts: Facts,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("facts", &self.facts)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// A new one, for so long from `now` on.
    ///
    /// # Errors
    /// If the system gives no randomness.
    pub fn make(now: OffsetDateTime, lifetime: Duration) -> Result<Self, AuthorityError> {
        let failed = |error| AuthorityError::Make {
            what: "a certificate authority".to_owned(),
            error,
        };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        params.not_before = now - EARLIER;
        params.not_after = now + lifetime;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // Two that serve at the same time have different names, so that chains are not tried in vain.
        let name = format!("orb8 {}", humantime::format_rfc3339_nanos(SystemTime::from(now)));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).map_err(failed)?;
        Self::read(
            Pair {
                certificate: certificate.pem(),
                key: key.serialize_pem(),
            },
            "the new certificate authority",
        )
    }

    /// From PEM that was read from `what`.
    ///
    /// # Errors
    /// If it is no certificate authority, or the key is not its own.
    pub fn read(pair: Pair, what: &str) -> Result<Self, AuthorityError> {
        let unusable = |why: String| AuthorityError::Unusable {
            what: what.to_owned(),
            why,
        };
        let key = own_key(&pair).map_err(unusable)?;
        let facts = facts(&pair.certificate).map_err(unusable)?;
        if !facts.signs {
            return Err(unusable("it is not a certificate authority's".to_owned()));
        }
        let issuer =
            Issuer::from_ca_cert_pem(&pair.certificate, key).map_err(|error| unusable(error.to_string()))?;
        Ok(Self { pair, facts, issuer })
    }

    /// Its certificate and key.
    #[must_use]
    pub const fn pair(&self) -> &Pair {
        &self.pair
    }

    /// What its certificate says.
    #[must_use]
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// A certificate for these DNS names, the first of which is an identity; for so long, but not longer than the
    /// authority's own.
    ///
    /// # Errors
    /// If a name is no DNS name, or the system gives no randomness.
    pub fn issue(
        &self,
        names: &[String],
        now: OffsetDateTime,
        lifetime: Duration,
    ) -> Result<Pair, AuthorityError> {
        let failed = |error| AuthorityError::Make {
            what: format!("a certificate for {}", names.join(", ")),
            error,
        };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::new(names).map_err(failed)?;
        params.not_before = (now - EARLIER).max(self.facts.from);
        params.not_after = (now + lifetime).min(self.facts.until);
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(identity) = names.first() {
            params.distinguished_name.push(DnType::CommonName, identity);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// What is wrong with `pair` as a certificate of this authority for these names; `None`: nothing.
    #[must_use]
    pub fn objection(&self, pair: &Pair, names: &[String], now: OffsetDateTime) -> Option<String> {
        let facts = match own_key(pair).and_then(|_| facts(&pair.certificate)) {
            Ok(facts) => facts,
            Err(why) => return Some(why),
        };
        let wanted: BTreeSet<String> = names.iter().cloned().collect();
        if facts.names != wanted {
            return Some(format!(
                "it was for {}",
                facts.names.into_iter().collect::<Vec<_>>().join(", ")
            ));
        }
        if !facts.valid(now) {
            return Some("it was not valid any more, or not yet".to_owned());
        }
        if !signed(&pair.certificate, &self.pair.certificate) {
            return Some("it was signed by another authority".to_owned());
        }
        facts
            .ends_soon(now)
            .then(|| "less than a third of its life was left".to_owned())
    }
}

/// Whether `by` signed `certificate`: both the first of PEM text.
fn signed(certificate: &str, by: &str) -> bool {
    let (Ok(certificate), Ok(by)) = (first(certificate), first(by)) else {
        return false;
    };
    match (certificate.parse_x509(), by.parse_x509()) {
        (Ok(certificate), Ok(by)) => {
            certificate.issuer() == by.subject()
                && certificate.verify_signature(Some(by.public_key())).is_ok()
        }
        _ => false,
    }
}

/// The key of a pair, if it belongs to the certificate.
fn own_key(pair: &Pair) -> Result<KeyPair, String> {
    let key = KeyPair::from_pem(&pair.key)
        .map_err(|error| format!("its private key is not PKCS #8 of a kind that is known here ({error})"))?;
    let pem = first(&pair.certificate)?;
    let certificate = parsed(&pem)?;
    let own = rcgen::PublicKeyData::subject_public_key_info(&key);
    if certificate.public_key().raw != own {
        return Err("its private key belongs to another certificate".to_owned());
    }
    Ok(key)
}

/// What the first certificate of PEM text says.
///
/// # Errors
/// If there is none.
pub fn facts(certificate: &str) -> Result<Facts, String> {
    let pem = first(certificate)?;
    let certificate = parsed(&pem)?;
    let names = match certificate.subject_alternative_name() {
        Ok(Some(names)) => names
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some((*name).to_owned()),
                _ => None,
            })
            .collect(),
        _ => BTreeSet::new(),
    };
    Ok(Facts {
        from: certificate.validity().not_before.to_datetime(),
        until: certificate.validity().not_after.to_datetime(),
        names,
        signs: certificate.is_ca(),
    })
}

/// Each certificate of PEM text as text of its own. What is none is left out.
#[must_use]
pub fn certificates(bundle: &str) -> Vec<String> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let mut rest = bundle;
    let mut found = Vec::new();
    while let Some(begin) = rest.find(BEGIN) {
        let Some(end) = rest[begin..].find(END) else {
            break;
        };
        let end = begin + end + END.len();
        found.push(format!("{}\n", &rest[begin..end]));
        rest = &rest[end..];
    }
    found
}

fn first(text: &str) -> Result<Pem, String> {
    Pem::iter_from_buffer(text.as_bytes())
        .flatten()
        .find(|pem| pem.label == "CERTIFICATE")
        .ok_or_else(|| "there is no certificate in it".to_owned())
}

fn parsed(pem: &Pem) -> Result<X509Certificate<'_>, String> {
    pem.parse_x509()
        .map_err(|error| format!("its certificate can't be read ({error})"))
}
