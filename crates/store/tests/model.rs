//! SQLite against the model.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use skiff_store::{
    Commit, Compare, KEY_BYTES_MAX, MemoryStore, Op, Range, SqliteStore, Store, StoreError, Txn,
    TxnOutcome, VALUE_BYTES_MAX,
};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
}

#[derive(Debug, Clone)]
enum Step {
    Txn(Txn),
    Range(Range, usize),
    Reopen,
}

fn a_key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(vec![0u8, b'a', b'b', 0xff]), 1..4)
}

fn an_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (a_key(), prop::collection::vec(any::<u8>(), 0..8)).prop_map(|(k, v)| Op::Put(k, v)),
        1 => a_key().prop_map(Op::Delete),
    ]
}

fn a_step() -> impl Strategy<Value = Step> {
    let compare = (a_key(), 0u64..12).prop_map(|(key, mod_revision)| Compare { key, mod_revision });
    let compares = prop::collection::vec(compare, 0..2);
    let ops = prop::collection::vec(an_op(), 0..4);
    let range = prop_oneof![
        (a_key(), a_key()).prop_map(|(a, b)| Range::new(a, b)),
        a_key().prop_map(Range::prefix),
        a_key().prop_map(Range::key),
        Just(Range::default()),
    ];
    prop_oneof![
        6 => (compares, ops).prop_map(|(compares, ops)| Step::Txn(Txn { compares, ops })),
        4 => (range, 0usize..6).prop_map(|(range, limit)| Step::Range(range, limit)),
        1 => Just(Step::Reopen),
    ]
}

async fn changes(store: &dyn Store, since: u64, upto: u64) -> Vec<Commit> {
    let mut watch = store.watch(Range::default(), since);
    let mut all = vec![];
    while all.last().map_or(since, |commit: &Commit| commit.revision) < upto {
        all.push(watch.next().await.unwrap());
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn sqlite_and_the_model_answer_alike(steps in prop::collection::vec(a_step(), 1..30)) {
        runtime().block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("store.db");
            let mut sqlite = SqliteStore::open(&path).unwrap();
            let model = MemoryStore::new();
            let mut since = 0;
            let mut revision = 0;
            for step in steps {
                match step {
                    Step::Txn(txn) => {
                        let (a, b) = (sqlite.txn(txn.clone()).await, model.txn(txn).await);
                        if let Ok(TxnOutcome::Committed { revision: new }) = &a {
                            revision = *new;
                        }
                        assert_eq!(format!("{a:?}"), format!("{b:?}"));
                    }
                    Step::Range(range, limit) => {
                        let a = sqlite.range(range.clone(), limit).await.unwrap();
                        assert_eq!(a, model.range(range, limit).await.unwrap());
                    }
                    Step::Reopen => {
                        let (a, b) = (changes(&sqlite, since, revision).await, changes(&model, since, revision).await);
                        assert_eq!(a, b);
                        drop(sqlite);
                        sqlite = SqliteStore::open(&path).unwrap();
                        since = revision;
                    }
                }
            }
            let all = Range::default();
            let a = sqlite.range(all.clone(), 1000).await.unwrap();
            assert_eq!(a, model.range(all, 1000).await.unwrap());
            assert_eq!(changes(&sqlite, since, revision).await, changes(&model, since, revision).await);
        });
    }
}

fn put(key: &str, mod_revision: u64) -> Txn {
    Txn {
        compares: vec![Compare {
            key: key.into(),
            mod_revision,
        }],
        ops: vec![Op::Put(key.into(), b"value".to_vec())],
    }
}

async fn limits(store: &dyn Store) {
    let put = |key: Vec<u8>, value: usize| Txn {
        compares: vec![],
        ops: vec![Op::Put(key, vec![0; value])],
    };
    for txn in [
        put(vec![b'a'; KEY_BYTES_MAX + 1], 1),
        put(b"a".to_vec(), VALUE_BYTES_MAX + 1),
    ] {
        let error = store.txn(txn).await.unwrap_err();
        assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    }
    for keys in [vec![""], vec!["a", "a"]] {
        let ops = keys.into_iter().map(|key| Op::Delete(key.into())).collect();
        let txn = Txn {
            compares: vec![],
            ops,
        };
        assert!(matches!(store.txn(txn).await, Err(StoreError::Keys)));
    }
    let largest = put(vec![b'a'; KEY_BYTES_MAX], VALUE_BYTES_MAX);
    assert!(store.txn(largest).await.is_ok());
}

#[test]
fn what_is_too_large_is_refused_by_name() {
    runtime().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        limits(&SqliteStore::open(&folder.path().join("store.db")).unwrap()).await;
        limits(&MemoryStore::new()).await;
    });
}

#[test]
fn of_many_at_once_one_wins_and_the_others_are_told_why() {
    runtime().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("store.db")).unwrap();
        let all = (0..200).map(|_| store.txn(put("one", 0)));
        let outcomes = futures_util::future::join_all(all).await;
        let won = |o: &&Result<TxnOutcome, _>| matches!(o, Ok(TxnOutcome::Committed { .. }));
        assert_eq!(outcomes.iter().filter(won).count(), 1);
        let conflict = TxnOutcome::Conflict {
            key: b"one".to_vec(),
            mod_revision: 1,
        };
        let lost = outcomes
            .iter()
            .filter(|o| o.as_ref().is_ok_and(|o| *o == conflict));
        assert_eq!(lost.count(), 199);
    });
}

#[test]
fn a_backup_is_a_store_with_all_that_was_there() {
    runtime().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("store.db")).unwrap();
        store.txn(put("a", 0)).await.unwrap();
        let to = folder.path().join("copy.db");
        store.backup(&to).await.unwrap();
        store.txn(put("b", 0)).await.unwrap();
        let copy = SqliteStore::open(&to).unwrap();
        let ranged = copy.range(Range::default(), 10).await.unwrap();
        assert_eq!((ranged.revision, ranged.items.len()), (1, 1));
    });
}

#[test]
fn the_files_are_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    runtime().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("store.db")).unwrap();
        store.txn(put("a", 0)).await.unwrap();
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let file = file.unwrap();
            let mode = file.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{:?}", file.path());
        }
    });
}
