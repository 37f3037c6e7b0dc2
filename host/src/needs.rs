//! The inputs that a task's plan asks for: checks them, lists prefixes, and gathers all inputs. The
//! keys and prefixes come from a guest and are not trusted.

use std::collections::{HashMap, HashSet};

use futures_util::StreamExt;

use crate::bucket::{Bucket, BucketError};
use crate::key::{BucketKey, KeyError, Prefix};
use crate::message::Task;
use crate::prefetch::{PrefetchError, Wanted};
use crate::publish::Protected;
use crate::sandbox::{Input, Need};
use crate::turns::Turns;
use crate::words;

/// The maximum number of inputs that a plan may ask for, including those below its prefixes.
pub const MOST_INPUTS: usize = 10_000;
/// The maximum total size of their keys in bytes.
pub const MOST_TEXT: usize = 2 << 20;
/// The maximum number of calls of a plan for one attempt.
pub const MOST_CALLS: usize = 8;
/// The maximum number of bytes that an error quotes of a key.
const MAX_QUOTED: usize = 300;

/// Where plans may read, in addition to the base directory of their task.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// The prefixes that the operator allows.
    pub readable: Vec<Prefix>,
    /// The prefixes that no plan may read, even if the operator allows a prefix above them.
    pub protected: Vec<Protected>,
}

/// Why a plan is refused.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A text is not a key.
    #[error("`plan` asked for {asked:?}, which {problem}")]
    Key {
        /// The text.
        asked: String,
        /// What is wrong with it.
        problem: KeyError,
    },
    /// The task may not read this key.
    #[error("`plan` asked for `{asked}`, which is outside of {allowed}")]
    Outside {
        /// The key or prefix.
        asked: String,
        /// Where the task may read.
        allowed: String,
    },
    /// No plan may read this key.
    #[error("`plan` asked for `{asked}`, where {content} are")]
    Protected {
        /// The key or prefix.
        asked: String,
        /// A description of the objects there.
        content: &'static str,
    },
    /// Two objects would have the same path.
    #[error("`plan` asked for `{one}` and `{other}`, which would both be /inputs/{path}")]
    Twice {
        /// The path.
        path: BucketKey,
        /// The key of the first.
        one: BucketKey,
        /// The key of the second.
        other: BucketKey,
    },
    /// Too many inputs.
    #[error("`plan` asked for more than the maximum of {MOST_INPUTS} inputs{}", below(.0))]
    TooMany(Option<String>),
    /// The keys are too long together.
    #[error("`plan` asked for keys of more than the maximum of {MOST_TEXT} bytes in total")]
    TooLong,
    /// Too many calls.
    #[error("`plan` asked to be called more than the maximum of {MOST_CALLS} times")]
    TooManyCalls,
    /// The bucket could not be listed.
    #[error(transparent)]
    Bucket(#[from] PrefetchError),
}

/// The prefix that exceeded the limit.
fn below(prefix: &Option<String>) -> String {
    prefix.as_ref().map_or_else(String::new, |prefix| format!(" (below `{prefix}`)"))
}

/// The inputs of one task: the inputs of its message, and those that its plan has asked for so far.
#[derive(Debug)]
pub struct Gathered {
    base: Prefix,
    wanted: Vec<Wanted>,
    /// The index in `wanted` for each path.
    places: HashMap<BucketKey, usize>,
    /// The number of inputs from the message. They come first in `wanted`.
    given: usize,
    text: usize,
}

impl Gathered {
    /// Starts with the inputs of the task's message.
    pub fn new(task: &Task) -> Self {
        let base = task.base_directory.clone();
        let mut gathered =
            Self { base, wanted: Vec::new(), places: HashMap::new(), given: 0, text: 0 };
        for path in &task.inputs {
            let key = gathered.base.join(path);
            gathered.push(Wanted { path: path.clone(), key, is_optional: false });
        }
        gathered.given = gathered.wanted.len();
        gathered
    }

    /// Adds the inputs that one call of the plan asked for.
    ///
    /// # Errors
    /// For the first input that the task may not read.
    pub async fn add(
        &mut self,
        needs: &[Need],
        reach: &Reach,
        bucket: &dyn Bucket,
    ) -> Result<(), PlanError> {
        let mut turns = Turns::begin();
        for need in needs {
            turns.pass().await;
            match need {
                Need::Key(asked) => self.add_key(asked, false, reach)?,
                Need::OptionalKey(asked) => self.add_key(asked, true, reach)?,
                Need::Prefix(asked) => self.add_below(asked, reach, bucket).await?,
            }
        }
        Ok(())
    }

    /// All inputs, in order.
    pub fn wanted(&self) -> Vec<Wanted> {
        self.wanted.clone()
    }

    /// The paths for the guest: all inputs of the message, followed by the planned inputs that are
    /// in `there`.
    pub fn listed(&self, task: &Task, there: &[Input]) -> Vec<BucketKey> {
        let there: HashSet<&BucketKey> = there.iter().map(|input| &input.path).collect();
        let planned = self.wanted[self.given..].iter().map(|wanted| &wanted.path);
        task.inputs.iter().chain(planned.filter(|path| there.contains(path))).cloned().collect()
    }

    fn add_key(&mut self, asked: &str, is_optional: bool, reach: &Reach) -> Result<(), PlanError> {
        let refused = |problem| PlanError::Key { asked: quoted(asked), problem };
        let (base, text) = self.origin(asked);
        let path = BucketKey::new(text).map_err(refused)?;
        // The complete key may be too long even if the path is not.
        let key = BucketKey::new(base.join(&path).as_str()).map_err(refused)?;
        self.check(asked, &Prefix::internal(key.as_str()), reach)?;
        self.insert(Wanted { path, key, is_optional })
    }

    async fn add_below(
        &mut self,
        asked: &str,
        reach: &Reach,
        bucket: &dyn Bucket,
    ) -> Result<(), PlanError> {
        let refused = |problem| PlanError::Key { asked: quoted(asked), problem };
        let (base, text) = self.origin(asked);
        let below = match text.strip_suffix('/').unwrap_or(text) {
            "" => Prefix::root(),
            text => Prefix::new(text).map_err(refused)?,
        };
        let prefix = match base.below(&below) {
            root if root.is_root() => root,
            prefix => Prefix::new(prefix.as_str()).map_err(refused)?,
        };
        self.check(asked, &prefix, reach)?;
        let mut found = Vec::new();
        let mut listing = bucket.list(&prefix);
        while let Some(listed) = listing.next().await {
            let key = listed.map_err(|error| unlisted(&prefix, error))?.key;
            // A protected prefix may be below this one.
            if key.is_reserved() || reach.protecting(&Prefix::internal(key.as_str())).is_some() {
                continue;
            }
            found.push(key);
            if self.planned() + found.len() > MOST_INPUTS {
                return Err(PlanError::TooMany(Some(quoted(asked))));
            }
        }
        drop(listing);
        found.sort_unstable();
        for key in found {
            let path = match base.is_root() {
                true => key.clone(),
                // All keys below `prefix` are below `base`.
                false => BucketKey::internal(&key.as_str()[base.as_str().len() + 1..]),
            };
            self.insert(Wanted { path, key, is_optional: false })?;
        }
        Ok(())
    }

    /// Splits the text of a need into its base and the rest. After a leading slash the base is the
    /// bucket's root, otherwise the base directory.
    fn origin<'a>(&self, asked: &'a str) -> (Prefix, &'a str) {
        match asked.strip_prefix('/') {
            Some(text) => (Prefix::root(), text),
            None => (self.base.clone(), asked),
        }
    }

    /// Checks that the task may read at and below `prefix`.
    fn check(&self, asked: &str, prefix: &Prefix, reach: &Reach) -> Result<(), PlanError> {
        let reserved = BucketKey::new(prefix.as_str()).is_ok_and(|key| key.is_reserved());
        if reserved {
            return Err(PlanError::Key { asked: quoted(asked), problem: KeyError::Reserved });
        }
        if let Some(content) = reach.protecting(prefix) {
            return Err(PlanError::Protected { asked: quoted(prefix.as_str()), content });
        }
        // Without a base directory, the message does not say where the task may read.
        let is_below_base = !self.base.is_root() && prefix.is_within(&self.base);
        if is_below_base || reach.readable.iter().any(|readable| prefix.is_within(readable)) {
            return Ok(());
        }
        let allowed = match self.base.is_root() {
            true => "--readable; its message has no base directory".to_owned(),
            false => format!("`{}` and of --readable", self.base),
        };
        let asked = if prefix.is_root() { "/" } else { prefix.as_str() };
        Err(PlanError::Outside { asked: quoted(asked), allowed })
    }

    fn insert(&mut self, wanted: Wanted) -> Result<(), PlanError> {
        if let Some(place) = self.places.get(&wanted.path) {
            let there = &mut self.wanted[*place];
            // One call may require an input that is optional in another call.
            there.is_optional &= wanted.is_optional;
            return match there.key == wanted.key {
                true => Ok(()),
                false => Err(PlanError::Twice {
                    path: wanted.path,
                    one: there.key.clone(),
                    other: wanted.key,
                }),
            };
        }
        if self.planned() == MOST_INPUTS {
            return Err(PlanError::TooMany(None));
        }
        self.text += wanted.key.as_str().len();
        if self.text > MOST_TEXT {
            return Err(PlanError::TooLong);
        }
        self.push(wanted);
        Ok(())
    }

    fn push(&mut self, wanted: Wanted) {
        let place = self.wanted.len();
        if !self.places.contains_key(&wanted.path) {
            self.places.insert(wanted.path.clone(), place);
            self.wanted.push(wanted);
        }
    }

    fn planned(&self) -> usize {
        self.wanted.len() - self.given
    }
}

impl Reach {
    /// A description of the protected objects at `prefix`, if there are any.
    fn protecting(&self, prefix: &Prefix) -> Option<&'static str> {
        let part = self.protected.iter().find(|part| prefix.is_within(&part.prefix));
        part.map(|part| part.content)
    }
}

fn unlisted(prefix: &Prefix, error: BucketError) -> PrefetchError {
    // The name of the root is empty.
    let name = if prefix.is_root() { "objects" } else { prefix.as_str() };
    let name = BucketKey::internal(name);
    PrefetchError::from_cache(&name, &name, error.into())
}

fn quoted(text: &str) -> String {
    words::bounded_line(&text, MAX_QUOTED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::DirBucket;
    use crate::message;

    struct Fixture {
        _root: tempfile::TempDir,
        bucket: DirBucket,
    }

    fn fixture(keys: &[&str]) -> Fixture {
        let root = tempfile::tempdir().unwrap();
        let bucket = DirBucket::create(&root.path().join("bucket")).unwrap();
        for key in keys {
            let path = bucket.path().join(key);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        Fixture { _root: root, bucket }
    }

    fn reach(readable: &[&str]) -> Reach {
        let prefix = |text: &&str| match *text {
            "/" => Prefix::root(),
            text => Prefix::new(text).unwrap(),
        };
        Reach {
            readable: readable.iter().map(prefix).collect(),
            protected: vec![Protected::components(Prefix::new("components").unwrap())],
        }
    }

    const WITH_BASE: &str =
        r#"{"basic_info": {"name": "N", "base_directory": "d/e", "inputs": ["a"]}}"#;
    const BARE: &str = r#"{"payload": {"class": "N"}}"#;

    async fn gather(
        f: &Fixture,
        message: &str,
        readable: &[&str],
        needs: &[Need],
    ) -> Result<Vec<String>, String> {
        let mut gathered = Gathered::new(&message::decode(message.as_bytes()).unwrap());
        let added = gathered.add(needs, &reach(readable), &f.bucket).await;
        added.map_err(|error| error.to_string())?;
        let shown = |w: &Wanted| format!("{}={}", w.path, w.key);
        Ok(gathered.wanted().iter().map(shown).collect())
    }

    fn key(text: impl Into<String>) -> Need {
        Need::Key(text.into())
    }

    #[tokio::test]
    async fn a_plan_reads_below_its_base_and_where_the_operator_allows_it() {
        let f = fixture(&[]);
        let needs = [key("b/c"), key("/models/m"), key("/d/e/x"), key("a")];
        let got = gather(&f, WITH_BASE, &["models"], &needs).await.unwrap();
        assert_eq!(got, ["a=d/e/a", "b/c=d/e/b/c", "models/m=models/m", "d/e/x=d/e/x"]);
        for (message, readable, asked, want) in [
            (WITH_BASE, &[][..], "/models/m", "which is outside of `d/e` and of --readable"),
            (WITH_BASE, &["model"], "/models/m", "which is outside of `d/e` and of --readable"),
            (WITH_BASE, &[], "/d/ex", "which is outside of `d/e` and of --readable"),
            (BARE, &[], "a", "outside of --readable; its message has no base directory"),
            (WITH_BASE, &["/"], "/components/N.wasm", "where the components are"),
            (WITH_BASE, &["/"], "/_receipts/00/0.json", "reserved for the host"),
            (WITH_BASE, &["/"], "/_HOSTS/a", "reserved for the host"),
        ] {
            let error = gather(&f, message, readable, &[key(asked)]).await.unwrap_err();
            assert!(error.starts_with("`plan` asked for "), "{error}");
            assert!(error.contains(want), "{asked}: {error}");
        }
        assert_eq!(gather(&f, BARE, &["/"], &[key("a/b")]).await.unwrap(), ["a/b=a/b"]);
    }

    #[tokio::test]
    async fn keys_that_could_escape_are_refused() {
        let f = fixture(&[]);
        let long = "x".repeat(2000);
        for asked in
            ["../x", "/../x", "b/../../x", "", "/", "//x", "a//b", "a/", "a\\b", "a\nb", &long]
        {
            let error = gather(&f, WITH_BASE, &["/"], &[key(asked)]).await.unwrap_err();
            assert!(error.starts_with("`plan` asked for \""), "{error}");
            assert!(error.len() < 500, "{error}");
        }
        for asked in ["..", "../", "/..", "a//", "b/../.."] {
            let needs = [Need::Prefix(asked.to_owned())];
            assert!(gather(&f, WITH_BASE, &["/"], &needs).await.is_err(), "{asked}");
        }
    }

    #[tokio::test]
    async fn a_prefix_is_its_objects_in_the_order_of_their_keys() {
        let f = fixture(&["d/e/c/2", "d/e/c/10", "d/e/c/1/x", "d/e/f", "components/N.wasm", "g"]);
        let below = |text: &str| [Need::Prefix(text.to_owned())];
        for asked in ["c", "c/", "/d/e/c"] {
            let got = gather(&f, WITH_BASE, &[], &below(asked)).await.unwrap();
            let keys: Vec<&str> =
                got[1..].iter().map(|one| one.split_once('=').unwrap().1).collect();
            assert_eq!(keys, ["d/e/c/1/x", "d/e/c/10", "d/e/c/2"], "{asked}");
        }
        assert_eq!(gather(&f, WITH_BASE, &[], &below("none")).await.unwrap(), ["a=d/e/a"]);
        let all = gather(&f, BARE, &["/"], &below("")).await.unwrap();
        assert_eq!(all.len(), 5, "no component: {all:?}");
        let error = gather(&f, WITH_BASE, &["d"], &below("/")).await.unwrap_err();
        assert_eq!(error, "`plan` asked for `/`, which is outside of `d/e` and of --readable");
    }

    #[tokio::test]
    async fn how_much_a_plan_asks_for_has_a_limit() {
        let f = fixture(&[]);
        let many: Vec<Need> = (0..=MOST_INPUTS).map(|n| key(n.to_string())).collect();
        assert_eq!(gather(&f, WITH_BASE, &[], &many[1..]).await.unwrap().len(), MOST_INPUTS + 1);
        let error = gather(&f, WITH_BASE, &[], &many).await.unwrap_err();
        assert_eq!(error, "`plan` asked for more than the maximum of 10000 inputs");
        let long: Vec<Need> = (0..4000)
            .map(|n| key(format!("{}/{}/{n}", "x".repeat(255), "y".repeat(255))))
            .collect();
        let error = gather(&f, WITH_BASE, &[], &long[..]).await;
        assert_eq!(error.map(|all| all.len()), Ok(4001));
        let long: Vec<Need> =
            (0..4000).map(|n| key(format!("{0}/{0}/{0}/{n}", "x".repeat(255)))).collect();
        let error = gather(&f, WITH_BASE, &[], &long).await.unwrap_err();
        assert!(error.contains("keys of more than the maximum of 2097152 bytes"), "{error}");
        let same: Vec<Need> = (0..3 * MOST_INPUTS).map(|_| key("b")).collect();
        assert_eq!(gather(&f, WITH_BASE, &[], &same).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn two_objects_do_not_share_a_path() {
        let f = fixture(&[]);
        let error = gather(&f, WITH_BASE, &["b"], &[key("b/c"), key("/b/c")]).await.unwrap_err();
        assert_eq!(error, "`plan` asked for `d/e/b/c` and `b/c`, which would both be /inputs/b/c");
    }
}
