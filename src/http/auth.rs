//! Basic authentication (RFC 7617).
//!
//! What is configured and what is presented are compared as keyed digests of equal size, in constant time,
//! so neither a prefix nor a length shows in how long an answer takes. User and password are always both
//! compared. With a bcrypt hash the same holds for the user name: the hash is evaluated whoever asks.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_PAD_INDIFFERENT as BASE64;
use hyper::header::HeaderValue;
use ring::hmac;
use ring::rand::SystemRandom;
use subtle::ConstantTimeEq;

use super::error::HttpError;
use super::turns::Turns;

/// Longer `Authorization` headers are refused unread.
const MAX_HEADER: usize = 2048;
/// The most expensive bcrypt hash that is taken: about 20 seconds for an evaluation.
const MAX_COST: u32 = 18;
/// Remembered results of bcrypt: right ones of each user, and wrong ones.
const REMEMBERED: usize = 64;

/// The users and the passwords that give access. Cheap to clone; holds no password in the clear, and `Debug`
/// shows neither passwords nor users.
#[derive(Clone)]
pub struct Credentials(Arc<Inner>);

struct Inner {
    /// Random at each start, so that the digests are worth nothing elsewhere.
    key: hmac::Key,
    /// At least one.
    users: Vec<Arc<User>>,
    /// Pairs that bcrypt has found wrong.
    wrong: Mutex<Recent>,
    /// One evaluation at a time: a flood of guesses costs one core at most.
    turns: Arc<Turns>,
}

/// One user. Kept when the others change, with what is known of its password.
struct User {
    name: hmac::Tag,
    password: Password,
    /// Pairs with this user that bcrypt has found right.
    right: Mutex<Recent>,
}

enum Password {
    Plain(hmac::Tag),
    Bcrypt(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(<hidden>)")
    }
}

impl Credentials {
    /// Takes users and their passwords. A password that begins with `$2a$`, `$2b$` or `$2y$` is a bcrypt hash,
    /// as `htpasswd -nB` prints it; any other is meant literally. Users that `previous` had with the same passwords stay
    /// known: who has authenticated need not do it again.
    ///
    /// # Errors
    /// [`HttpError::Credentials`] when there is no user, or for the reasons of [`check_user`].
    pub fn new<'a>(
        users: impl IntoIterator<Item = (&'a str, &'a str)>,
        previous: Option<&Credentials>,
    ) -> Result<Self, HttpError> {
        let key = match previous {
            Some(previous) => previous.0.key.clone(),
            None => hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
                .map_err(|_| refused("the system's random number generator failed"))?,
        };
        let mut all = Vec::new();
        for (name, password) in users {
            check_user(name, password)?;
            let password = if is_hash(password) {
                Password::Bcrypt(password.to_string())
            } else {
                Password::Plain(hmac::sign(&key, password.as_bytes()))
            };
            let name = hmac::sign(&key, name.as_bytes());
            let known = previous.and_then(|previous| {
                let same =
                    |user: &&Arc<User>| bool::from(equal(&user.name, &name)) && user.password.is(&password);
                previous.0.users.iter().find(same).cloned()
            });
            all.push(known.unwrap_or_else(|| Arc::new(User { name, password, right: Mutex::default() })));
        }
        if all.is_empty() {
            return Err(refused("there is no user"));
        }
        let turns = previous.map(|previous| previous.0.turns.clone()).unwrap_or_default();
        Ok(Self(Arc::new(Inner { key, users: all, wrong: Mutex::default(), turns })))
    }

    /// Whether a header gives access by what is known already, at no cost.
    pub(super) fn knows(&self, header: Option<&HeaderValue>) -> bool {
        header.and_then(parse).is_some_and(|presented| self.lookup(&presented).1 == Some(true))
    }

    /// True when an `Authorization` header from `peer` gives access. Waits, off the reactor, for bcrypt where a
    /// hash is configured and this pair has not been seen.
    pub(super) async fn accept(&self, header: Option<&HeaderValue>, peer: IpAddr) -> bool {
        let Some(presented) = header.and_then(parse) else { return false };
        let inner = &self.0;
        let (found, known) = self.lookup(&presented);
        if let Some(result) = known {
            return result;
        }
        let Some(turn) = inner.turns.take(peer).await else { return false };
        // Another request may have brought the same pair while this one waited.
        if let (_, Some(result)) = self.lookup(&presented) {
            return result;
        }
        // The turn goes with the evaluation, which runs to its end even when nobody waits for it any more.
        let credentials = self.clone();
        let evaluated = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            credentials.evaluate(&found, &presented)
        });
        evaluated.await.unwrap_or(false)
    }

    /// Takes long. The result is known from then on.
    fn evaluate(&self, found: &UserMatch, presented: &Presented) -> bool {
        let inner = &self.0;
        let user = &inner.users[found.user];
        let Password::Bcrypt(hash) = &user.password else { return false };
        let verified = bcrypt::verify(&presented.password, hash);
        let result = matches!(verified, Ok(true)) & found.is_that;
        lock(if result { &user.right } else { &inner.wrong }).remember(inner.pair(presented).as_ref());
        result
    }

    /// The user that is meant, and the result as far as it is known.
    fn lookup(&self, presented: &Presented) -> (UserMatch, Option<bool>) {
        let inner = &self.0;
        let found = inner.find(&presented.user);
        let user = &inner.users[found.user];
        let known = match &user.password {
            Password::Plain(right) => {
                let password_right = equal(&hmac::sign(&inner.key, &presented.password), right);
                Some(bool::from(password_right) & found.is_that)
            }
            Password::Bcrypt(_) => {
                let pair = inner.pair(presented);
                let right = lock(&user.right).has(pair.as_ref());
                let wrong = lock(&inner.wrong).has(pair.as_ref());
                (right || wrong).then_some(right && found.is_that)
            }
        };
        (found, known)
    }
}

/// Whose password is compared, and whether that is who asks.
struct UserMatch {
    user: usize,
    is_that: bool,
}

impl Inner {
    /// All users are compared. For a name that nobody has, one of the users stands in, for this name always the
    /// same, so that it takes as long as for some user that there is.
    fn find(&self, name: &[u8]) -> UserMatch {
        let name = hmac::sign(&self.key, name);
        let stand_in =
            name.as_ref().iter().fold(0, |sum, byte| (sum * 256 + usize::from(*byte)) % self.users.len());
        let mut found = UserMatch { user: stand_in, is_that: false };
        for (at, user) in self.users.iter().enumerate() {
            if bool::from(equal(&name, &user.name)) {
                found = UserMatch { user: at, is_that: true };
            }
        }
        found
    }

    fn pair(&self, presented: &Presented) -> hmac::Tag {
        // The user has no colon, so the pair is unambiguous.
        hmac::sign(&self.key, &[&presented.user[..], b":", &presented.password[..]].concat())
    }
}

impl Password {
    fn is(&self, other: &Password) -> bool {
        match (self, other) {
            (Password::Plain(a), Password::Plain(b)) => equal(a, b).into(),
            (Password::Bcrypt(a), Password::Bcrypt(b)) => a == b,
            _ => false,
        }
    }
}

/// Whether a password is meant as a bcrypt hash, valid or not.
pub fn is_hash(password: &str) -> bool {
    ["$2a$", "$2b$", "$2y$"].iter().any(|prefix| password.starts_with(prefix))
}

fn refused(text: impl Into<String>) -> HttpError {
    HttpError::Credentials(text.into())
}

/// Whether a user name and its password, or the hash of it, can be used.
///
/// # Errors
/// [`HttpError::Credentials`] when either is empty, when the user holds a colon (basic authentication
/// cannot send one), or when a bcrypt hash is malformed or too expensive.
pub fn check_user(user: &str, password: &str) -> Result<(), HttpError> {
    if user.is_empty() || password.is_empty() {
        return Err(refused("the metrics user and password must not be empty"));
    }
    if user.contains(':') {
        return Err(refused(
            "the metrics user name contains a colon, which basic authentication does not allow",
        ));
    }
    if !is_hash(password) {
        return Ok(());
    }
    match password.parse::<bcrypt::HashParts>() {
        Ok(parts) if parts.get_cost() > MAX_COST => Err(refused(format!(
            "the metrics password is a bcrypt hash of cost {}, which takes too long to check; the maximum cost \
             is {MAX_COST}",
            parts.get_cost()
        ))),
        Ok(_) => Ok(()),
        Err(_) => Err(refused(
            "the metrics password looks like a bcrypt hash but is not a valid one; `exporter hash-password` \
             prints one (keep all 60 characters, quoted)",
        )),
    }
}

fn equal(a: &hmac::Tag, b: &hmac::Tag) -> subtle::Choice {
    a.as_ref().ct_eq(b.as_ref())
}

fn lock(results: &Mutex<Recent>) -> std::sync::MutexGuard<'_, Recent> {
    results.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The latest pairs of one result, by their digests. Right and wrong ones are kept apart, so that any number of wrong
/// guesses cannot push a right pair out.
#[derive(Default)]
struct Recent {
    known: HashSet<Vec<u8>>,
    order: VecDeque<Vec<u8>>,
}

impl Recent {
    fn has(&self, pair: &[u8]) -> bool {
        self.known.contains(pair)
    }

    fn remember(&mut self, pair: &[u8]) {
        if !self.known.insert(pair.to_vec()) {
            return;
        }
        self.order.push_back(pair.to_vec());
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

/// The name that a header gives, right or wrong.
pub(super) fn user_of(header: &HeaderValue) -> Option<String> {
    parse(header).map(|presented| String::from_utf8_lossy(&presented.user).into_owned())
}

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
struct Presented {
    user: Vec<u8>,
    password: Vec<u8>,
}

/// User and password out of `Basic BASE64(user:password)`; `None` for anything else.
fn parse(header: &HeaderValue) -> Option<Presented> {
    let header = header.as_bytes();
    if header.len() > MAX_HEADER {
        return None;
    }
    let blank = header.iter().position(|&byte| byte == b' ')?;
    let (scheme, rest) = header.split_at(blank);
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let mut user = BASE64.decode(rest.trim_ascii()).ok()?;
    let colon = user.iter().position(|&byte| byte == b':')?;
    let password = user.split_off(colon + 1);
    user.pop();
    Some(Presented { user, password })
}

#[cfg(test)]
mod tests;
