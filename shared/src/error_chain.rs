//! An error with its causes as one line of text.
//!
//! Some libraries put internal words, Rust `Debug` text or their cause's text into their messages. Their errors are rewritten
//! here, so that a log line or an error message reads the same whichever library failed.

use std::{error::Error, io};

use rustls::{CertificateError, InvalidMessage, PeerIncompatible};

/// Returns an error and its sources in one line, joined by colons.
pub fn one_line(error: &(dyn Error + 'static)) -> String {
    let mut line = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = text(error);
        let text = text.trim();
        // Some errors repeat their cause in their own text.
        if !text.is_empty() && !line.ends_with(text) {
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(text);
        }
        next = error.source();
    }
    line.replace('\n', " ")
}

/// Returns the text of one error, without its causes; nothing where the causes say it all.
fn text(error: &(dyn Error + 'static)) -> String {
    if let Some(error) = error.downcast_ref::<fred::error::Error>() {
        // Without the kind, as in `IO Error: …`.
        return error.details().to_owned();
    }
    if let Some(error) = error.downcast_ref::<tokio_postgres::Error>() {
        return postgres_text(error);
    }
    if let Some(error) = error.downcast_ref() {
        return tls_text(error);
    }
    // The source of an I/O error is the source of the error that it wraps, and not that error itself.
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    wrapped.and_then(|wrapped| wrapped.downcast_ref()).map_or_else(|| error.to_string(), tls_text)
}

fn postgres_text(error: &tokio_postgres::Error) -> String {
    let text = error.to_string();
    // The server's own message, and the reason why it could not be reached, say more.
    let says_nothing = error.as_db_error().is_some() || text == "error connecting to server";
    if says_nothing && error.source().is_some() { String::new() } else { text }
}

/// Returns the cause of a failed TLS connection. rustls has only `Debug` text for most causes.
fn tls_text(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(why) => {
            format!("invalid server certificate: {}", certificate_text(why))
        }
        rustls::Error::AlertReceived(alert) => {
            format!("the server ended the TLS handshake: {}", words(&format!("{alert:?}")))
        }
        rustls::Error::PeerIncompatible(why) => match why {
            PeerIncompatible::NoCipherSuitesInCommon
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig => {
                "the server has no TLS version or cipher suite in common with this program".to_owned()
            }
            why => {
                format!("the server does not support a required TLS feature: {}", words(&format!("{why:?}")))
            }
        },
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the server sent an invalid TLS message: the port may not use TLS".to_owned()
        }
        rustls::Error::InvalidMessage(why) => {
            format!("the server sent an invalid TLS message: {}", words(&format!("{why:?}")))
        }
        error => error.to_string(),
    }
}

fn certificate_text(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => "it is not signed by a trusted authority".to_owned(),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired".to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet".to_owned()
        }
        CertificateError::Other(why) if format!("{why:?}").contains("CaUsedAsEndEntity") => {
            "it is a CA certificate, not a server certificate".to_owned()
        }
        error => {
            let text = error.to_string();
            // A bare name of an enum's variant.
            if text.bytes().all(|byte| byte.is_ascii_alphanumeric()) { words(&text) } else { text }
        }
    }
}

/// Returns the words of a `CamelCase` name in lower case: `ConnectionReset` is `connection reset`, `UnknownCA` is `unknown CA`.
pub(crate) fn words(name: &str) -> String {
    let mut words = String::new();
    let mut previous_is_lower = false;
    let letters: Vec<char> = name.chars().collect();
    for (index, letter) in letters.iter().enumerate() {
        let next_is_upper = letters.get(index + 1).is_none_or(char::is_ascii_uppercase);
        if letter.is_ascii_uppercase() && previous_is_lower {
            words.push(' ');
        }
        let is_in_acronym = letter.is_ascii_uppercase() && next_is_upper && letters.len() > 1;
        words.push(if is_in_acronym { *letter } else { letter.to_ascii_lowercase() });
        previous_is_lower = !letter.is_ascii_uppercase();
    }
    words
}

#[cfg(test)]
mod tests {
    use rustls::AlertDescription;
    use thiserror::Error;

    use super::*;

    #[derive(Debug, Error)]
    #[error("cannot read the file")]
    struct Outer(#[source] io::Error);

    #[derive(Debug, Error)]
    #[error("cannot connect: {0}")]
    struct Repeating(#[source] io::Error);

    #[test]
    fn causes_follow_their_error_without_repetition() {
        let refused = || io::Error::from_raw_os_error(111);
        assert_eq!(one_line(&Outer(refused())), "cannot read the file: Connection refused (os error 111)");
        assert_eq!(one_line(&Repeating(refused())), "cannot connect: Connection refused (os error 111)");
    }

    #[test]
    fn tls_errors_have_no_debug_text() {
        let tls = |error: rustls::Error| one_line(&io::Error::new(io::ErrorKind::InvalidData, error));
        assert_eq!(
            tls(CertificateError::UnknownIssuer.into()),
            "invalid server certificate: it is not signed by a trusted authority"
        );
        assert_eq!(tls(CertificateError::BadSignature.into()), "invalid server certificate: bad signature");
        assert_eq!(
            tls(rustls::Error::AlertReceived(AlertDescription::UnknownCA)),
            "the server ended the TLS handshake: unknown CA"
        );
    }

    #[test]
    fn redis_errors_have_no_kind_of_the_library() {
        let error = fred::error::Error::new(fred::error::ErrorKind::IO, "connection to Redis lost");
        assert_eq!(one_line(&error), "connection to Redis lost");
    }

    #[test]
    fn camel_case_becomes_words() {
        assert_eq!(
            ["ConnectionReset", "UnknownCA", "Expired", ""].map(words),
            ["connection reset", "unknown CA", "expired", ""]
        );
    }
}
