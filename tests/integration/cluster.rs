//! The pipeline on a real Redis Cluster: failover and slot migration.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use devstack::{redis_cluster::RedisCluster, redis_server::RedisServer};
use fred::prelude::Value;
use shared::{
    redis::{Connections, Retry},
    wire::{codec, partition::PartitionCount},
};
use tokio::{runtime::Handle, task::block_in_place};

use crate::{
    harness::{
        GROUP, PARTITIONS, SOON, Settings, Setup, connections, dead_stream, eventually, like, post, run,
        stream, wait_until_drained,
    },
    load::Load,
};

async fn command(redis: &Connections, name: &'static str, args: &[&str]) -> Value {
    let key = if name == "XGROUP" || name == "XINFO" { args[1] } else { args[0] };
    let args = args.iter().map(|arg| Value::from(*arg)).collect();
    redis.run(key, Retry::NonIdempotent, name, args).await.unwrap()
}

async fn length(redis: &Connections, stream: &str) -> u64 {
    command(redis, "XLEN", &[stream]).await.as_u64().unwrap()
}

async fn append(redis: &Connections, partition: u16, payload: &[u8]) {
    let stream = stream(partition);
    let payload = Value::Bytes(bytes::Bytes::copy_from_slice(payload));
    let args = vec![stream.as_str().into(), "*".into(), codec::FIELD.into(), payload];
    redis.run::<String>(&stream, Retry::NonIdempotent, "XADD", args).await.unwrap();
}

/// Number of entries that have been added to a stream.
fn entries_added(server: &RedisServer, stream: &str) -> u64 {
    let about = server.command(&["XINFO", "STREAM", stream]).unwrap();
    let mut lines = about.lines().skip_while(|line| *line != "entries-added");
    lines.nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pipeline_runs_on_a_cluster() {
    let setup = Setup::new().await;
    let cluster = RedisCluster::start(&[]).unwrap();
    let (url, redis) = (cluster.url(), connections(&cluster.url()).await);
    let masters: std::collections::BTreeSet<usize> =
        (0..PARTITIONS).map(|partition| cluster.master_of(&stream(partition)).unwrap()).collect();
    assert!(masters.len() > 1, "the partitions are on several primaries");
    // Pending entries of a dead consumer, and a malformed entry.
    for partition in 0..PARTITIONS {
        let stream = stream(partition);
        command(&redis, "XGROUP", &["CREATE", &stream, GROUP, "0", "MKSTREAM"]).await;
        append(&redis, partition, &codec::encode(&[like(1_000 + u64::from(partition), 42)])).await;
        let read = ["GROUP", GROUP, "gone", "STREAMS", &stream, ">"].map(Value::from).to_vec();
        redis.run::<Value>(&stream, Retry::NonIdempotent, "XREADGROUP", read).await.unwrap();
        append(&redis, partition, b"\xc1").await;
    }
    let settings: Settings<'_> = &[("REDIS_URL", &url), ("CLAIM_MIN_IDLE", "1s"), ("WRITE_TIMEOUT", "400ms")];
    let ingest = setup.ingest(settings);
    let _consumers = [setup.consumer(settings), setup.consumer(settings)];
    for user in 1..=200 {
        let body = format!(r#"{{"user_id": {user}, "post_id": 42}}"#);
        assert_eq!(post(&ingest, &body).await.status, 202);
    }
    setup.wait_for_rows(200 + usize::from(PARTITIONS)).await;
    wait_until_drained(&url).await;
    for partition in 0..PARTITIONS {
        assert_eq!(length(&redis, &dead_stream(partition)).await, 1);
        eventually("trimmed", async || length(&redis, &stream(partition)).await == 0).await;
    }
    eventually("ingest knows the backlog", async || {
        ingest.metrics().unwrap().sum("likestream_backlog_entries") == 0.0
    })
    .await;
}

/// Commands must reach the server that owns the key, and each script must use keys of one slot.
#[tokio::test(flavor = "multi_thread")]
async fn every_likesctl_command_works_on_a_cluster() {
    let setup = Setup::new().await;
    let cluster = RedisCluster::start(&[]).unwrap();
    let (url, redis) = (cluster.url(), connections(&cluster.url()).await);
    let database = setup.database_url();
    let settings: Settings<'_> = &[("REDIS_URL", &url), ("STREAM_RETENTION", "1h")];
    let consumer = setup.consumer(settings);
    let ctl = |arguments: &[&str], code| {
        let ended = run("likesctl", arguments, &[("REDIS_URL", &url), ("DATABASE_URL", &database)]);
        assert_eq!(ended.code, Some(code), "{arguments:?}: {}{}", ended.stdout, ended.stderr);
        ended.stdout
    };
    ctl(&["pause", "--yes"], 0);
    let paused = || consumer.metrics().unwrap().sum("likestream_partitions_paused");
    eventually("the partitions are paused", async || paused() == f64::from(PARTITIONS)).await;
    for partition in 0..PARTITIONS {
        append(&redis, partition, &codec::encode(&[like(1 + u64::from(partition), 42)])).await;
        let stream = stream(partition);
        let read = ["GROUP", GROUP, "gone", "STREAMS", &stream, ">"].map(Value::from).to_vec();
        redis.run::<Value>(&stream, Retry::NonIdempotent, "XREADGROUP", read).await.unwrap();
        append(&redis, partition, b"\xc1").await;
    }
    assert!(ctl(&["status"], 0).contains("backlog 8 (lag 4, pending 4)"));
    assert!(ctl(&["doctor"], 0).contains("gone is gone and has 4 pending entries"));
    assert!(ctl(&["consumers", "remove", "gone", "--yes"], 0).starts_with("removed; 4 pending entries"));
    ctl(&["resume", "--yes"], 0);
    assert_eq!(ctl(&["drain", "--timeout", "30s"], 0), "drained: the backlog is 0\n");
    setup.wait_for_rows(usize::from(PARTITIONS)).await;
    assert_eq!(ctl(&["dead", "retry", "--all", "--yes"], 0), "4 done\n");
    ctl(&["drain", "--timeout", "30s"], 0);
    assert_eq!(ctl(&["dead", "purge", "--all", "--yes", "--no-export"], 0), "4 done\n");
    ctl(&["verify"], 0);
    ctl(&["reprocess", "--from", "1h", "-p", "0-3", "--yes"], 4);
    assert_eq!(ctl(&["audit", "-o", "ndjson"], 0).lines().count(), 6);
}

/// Likes that a replica has confirmed survive the loss of the primary, while the other primaries keep working.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_primary_loses_no_replicated_like() {
    let setup = Setup::new().await;
    // With this setting, a lost primary makes only its own slots unavailable.
    let mut cluster = RedisCluster::start(&["--cluster-require-full-coverage", "no"]).unwrap();
    let url = cluster.url();
    let settings: Settings<'_> =
        &[("REDIS_URL", &url), ("REDIS_TIMEOUT", "1s"), ("CLAIM_MIN_IDLE", "2s"), ("WRITE_TIMEOUT", "900ms")];
    let ingest = setup.ingest(&[settings, &[("REDIS_ACK", "replicas:1")]].concat());
    let consumers = [setup.consumer(settings), setup.consumer(settings)];
    let load = Load::start(ingest.listen(), 300);
    load.wait_for(300).await;

    // The primary is killed with entries that its replica does not have. They must not have been accepted.
    let victim = cluster.master_of(&stream(0)).unwrap();
    let replica = victim + cluster.servers().len() / 2;
    cluster.servers()[replica].pause();
    cluster.servers()[victim].command(&["CLIENT", "KILL", "TYPE", "replica"]).unwrap();
    let appended = |cluster: &RedisCluster| entries_added(&cluster.servers()[victim], &stream(0));
    let before = appended(&cluster);
    eventually("the primary has entries that its replica does not have", async || {
        appended(&cluster) > before
    })
    .await;
    cluster.servers_mut()[victim].kill();
    cluster.servers()[replica].resume();
    eventually("the replica has taken over", async || {
        cluster.master_of(&stream(0)).is_ok_and(|now| now != victim)
    })
    .await;
    // Likes of its slots are accepted again only when a replica can confirm them.
    cluster.servers_mut()[victim].start_again().unwrap();
    load.wait_for(600).await;

    load.finish_stored(&setup, &url, &consumers).await;
}

/// During a migration, commands for the slot get ASK or TRYAGAIN.
#[tokio::test(flavor = "multi_thread")]
async fn slots_migrate_under_load_without_loss() {
    let setup = Setup::new().await;
    let cluster = RedisCluster::start(&[]).unwrap();
    let url = cluster.url();
    let redis = connections(&url).await;
    let settings: Settings<'_> = &[("REDIS_URL", &url), ("CLAIM_MIN_IDLE", "2s"), ("WRITE_TIMEOUT", "900ms")];
    let ingest = setup.ingest(settings);
    let consumers = [setup.consumer(settings), setup.consumer(settings)];
    let load = Load::start(ingest.listen(), 400);
    load.wait_for(200).await;
    for round in 0..2 {
        for partition in 0..PARTITIONS {
            let key = stream(partition);
            let to = cluster.other_master(cluster.master_of(&key).unwrap()).unwrap();
            // The dead letter of a malformed entry uses keys that neither side of the migration has yet.
            append(&redis, partition, &[0xc1, round, u8::try_from(partition).unwrap()]).await;
            // A slot that is divided between two primaries must still be served. After 60 further likes, every client has sent
            // one for this slot.
            let served = || block_in_place(|| Handle::current().block_on(load.wait_for(60)));
            cluster.move_slot(cluster.slot_of(&key).unwrap(), to, served).unwrap();
            eventually("the slot has moved", async || cluster.master_of(&key).is_ok_and(|now| now == to))
                .await;
            load.wait_for(50).await;
        }
    }
    load.finish_stored(&setup, &url, &consumers).await;
    for partition in 0..PARTITIONS {
        assert_eq!(
            length(&redis, &dead_stream(partition)).await,
            2,
            "one dead letter for each malformed entry"
        );
    }
}

/// A slot moves to a primary that owned none before, and stays divided for seconds. Its likes must be accepted without a wait for
/// a timeout, and stored meanwhile.
async fn a_slot_moves_to_an_added_primary(ack: &'static str) {
    let setup = Setup::new().await;
    let mut cluster = RedisCluster::start(&[]).unwrap();
    let url = cluster.url();
    let redis = connections(&url).await;
    let settings: Settings<'_> = &[("REDIS_URL", &url), ("REDIS_TIMEOUT", "4s")];
    let ingest = setup.ingest(&[settings, &[("REDIS_ACK", ack)]].concat());
    let consumer = setup.consumer(settings);
    let client = setup.postgres_client().await;
    let slowest = Cell::new(Duration::ZERO);
    // Users of partition 0 only.
    let mut users =
        (1..).filter(|user| PartitionCount::new(PARTITIONS).unwrap().of_user(*user).number() == 0);
    let mut accepted = 0;
    let mut stored_while_divided = async |likes: i64| {
        for user in users.by_ref().take(usize::try_from(likes).unwrap()) {
            let started = Instant::now();
            assert_eq!(post(&ingest, &format!(r#"{{"user_id": {user}, "post_id": 42}}"#)).await.status, 202);
            slowest.set(slowest.get().max(started.elapsed()));
        }
        accepted += likes;
        eventually("stored", async || {
            let row = client.query_one("SELECT count(*) FROM likes", &[]).await.unwrap();
            row.get::<_, i64>(0) == accepted
        })
        .await;
    };
    stored_while_divided(10).await;
    // The dead letters are a second key of the slot.
    append(&redis, 0, b"\xc1").await;
    eventually("dead letter", async || length(&redis, &dead_stream(0)).await == 1).await;
    let added = cluster.add_primary().unwrap();
    let meanwhile = || block_in_place(|| Handle::current().block_on(stored_while_divided(10)));
    cluster.move_slot(cluster.slot_of(&stream(0)).unwrap(), added, meanwhile).unwrap();
    eventually("the slot has moved", async || cluster.master_of(&stream(0)).is_ok_and(|now| now == added))
        .await;
    stored_while_divided(10).await;
    assert!(slowest.get() < Duration::from_secs(2), "{:?}", slowest.get());
    wait_until_drained(&url).await;
    assert_eq!(consumer.metrics().unwrap().sum("likestream_entries_lost_total"), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_moves_to_an_added_primary_without_refusals() {
    a_slot_moves_to_an_added_primary("memory").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_moves_to_an_added_primary_with_confirmed_appends() {
    a_slot_moves_to_an_added_primary("replicas:1").await;
}

/// A node that was removed from its cluster still responds, with an empty topology. That topology is ignored, even if the
/// node is the only one in `REDIS_URL`.
#[tokio::test(flavor = "multi_thread")]
async fn the_topology_of_a_removed_cluster_node_is_ignored() {
    let setup = Setup::new().await;
    let mut cluster = RedisCluster::start(&["--cluster-require-full-coverage", "no"]).unwrap();
    // REDIS_URL may name a replica.
    let replica = cluster.servers().last().unwrap();
    let url = format!("redis-cluster://127.0.0.1:{}", replica.port());
    let ingest = setup.ingest(&[("REDIS_URL", &url)]);
    let consumer = setup.consumer(&[("REDIS_URL", &url)]);
    let id = replica.command(&["CLUSTER", "MYID"]).unwrap();
    for server in cluster.servers().iter().rev().skip(1) {
        server.command(&["CLUSTER", "FORGET", id.trim()]).unwrap();
    }
    replica.command(&["CLUSTER", "RESET"]).unwrap();
    for server in &mut cluster.servers_mut()[..3] {
        server.kill();
        server.start_again().unwrap();
    }
    for program in [&ingest, &consumer] {
        program.wait_ready(SOON).unwrap();
    }
    let load = Load::start(ingest.listen(), 100);
    load.wait_for(100).await;
    let sent = load.finish().await;
    setup.wait_for_rows(sent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_url_of_the_wrong_kind_is_reported() {
    let setup = Setup::new().await;
    let cluster = RedisCluster::start(&[]).unwrap();
    let port = cluster.servers()[0].port();
    let single = setup.redis.url();
    for (url, said) in [
        (
            format!("redis://127.0.0.1:{port}"),
            format!("is a cluster node: use redis-cluster://127.0.0.1:{port}"),
        ),
        (single.replace("redis://", "redis-cluster://"), "cluster support disabled".to_owned()),
        (format!("{single}/99"), "DB index is out of range".to_owned()),
    ] {
        let settings = [
            ("REDIS_URL", url.as_str()),
            ("INGEST_LISTEN", "127.0.0.1:0"),
            ("INGEST_ADMIN_LISTEN", "127.0.0.1:0"),
        ];
        let ended = run("ingest", &[], &settings);
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        let last = ended.stderr.lines().last().unwrap();
        assert!(last.starts_with("error: REDIS_URL: ") && last.contains(&said), "{last}");
    }
}
