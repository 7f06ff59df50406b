//! Assignment of partitions to members. Every consumer computes the same assignment from the same members.

use shared::wire::partition::{Partition, PartitionCount, mix};

use crate::{
    group::static_assignment::StaticAssignment,
    stream::{Member, MemberState},
};

/// Partitions of one member, and orphaned partitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// Partitions assigned to the member, in order.
    pub own: Vec<Partition>,
    /// Partitions without an owner, in order. They exist only if every member has a static assignment or is leaving.
    pub orphans: Vec<Partition>,
}

/// Returns the assignment of the member `name`.
///
/// A member with a static assignment owns exactly the partitions of that assignment; several members may own the same
/// partition this way. The remaining partitions are distributed evenly among the other members: their numbers of
/// partitions differ by at most one. Stuck members get no partitions unless all of these members are stuck.
///
/// Rendezvous hashing with bounded loads: each pair of partition and member has a fixed score. Partitions are assigned by
/// descending score, up to the capacity of each member. A rebalance therefore moves little more than the minimum.
///
/// Sources: Thaler and Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996; for the bound, Mirrokni, Thorup
/// and Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2018.
pub fn assign(partitions: PartitionCount, members: &[Member], name: impl AsRef<[u8]>) -> Assignment {
    let name = name.as_ref();
    let mut free: Vec<Partition> = partitions.partitions().collect();
    let mut own = Vec::new();
    let mut sharing = Vec::new();
    let mut stuck = Vec::new();
    for member in members.iter().filter(|member| member.state != MemberState::Leaving) {
        match member.static_assignment.parse::<StaticAssignment>() {
            Ok(assignment) if !member.static_assignment.is_empty() => {
                let assigned = assignment.of(partitions);
                free.retain(|partition| !assigned.contains(partition));
                if member.name.as_ref() == name {
                    own = assigned;
                }
            }
            // Also a member whose static assignment this version cannot parse. If two members read the same partition,
            // its entries are still stored once.
            _ if member.state == MemberState::Stuck => stuck.push(member.name.as_ref()),
            _ => sharing.push(member.name.as_ref()),
        }
    }
    if sharing.is_empty() {
        sharing = stuck;
    }
    if sharing.is_empty() {
        return Assignment { own, orphans: free };
    }
    own.extend(share(&free, &mut sharing, name));
    own.sort_unstable();
    Assignment { own, orphans: Vec::new() }
}

/// Returns the share of member `name` in the partitions `free`.
fn share(free: &[Partition], members: &mut [&[u8]], name: &[u8]) -> Vec<Partition> {
    // The remainder of the division goes to the first members. Sorted by hash: by name, the same names would always get
    // the larger share.
    members.sort_unstable_by_key(|member| (hash(member), *member));
    let least = free.len() / members.len();
    let surplus = free.len() % members.len();
    let mut capacities: Vec<usize> =
        (0..members.len()).map(|rank| least + usize::from(rank < surplus)).collect();

    let hashes: Vec<u64> = members.iter().map(|member| hash(member)).collect();
    let score = |partition: Partition, rank: usize| mix(hashes[rank] ^ mix(partition.number().into()));
    let pairs = free.iter().flat_map(|partition| (0..members.len()).map(|rank| (*partition, rank)));
    let mut pairs: Vec<(u64, Partition, usize)> =
        pairs.map(|(partition, rank)| (score(partition, rank), partition, rank)).collect();
    pairs.sort_unstable_by(|one, other| other.cmp(one));

    let mut is_assigned = vec![false; free.last().map_or(0, |last| last.index() + 1)];
    let mut own = Vec::new();
    for (_, partition, rank) in pairs {
        if !is_assigned[partition.index()] && capacities[rank] > 0 {
            is_assigned[partition.index()] = true;
            capacities[rank] -= 1;
            if members[rank] == name {
                own.push(partition);
            }
        }
    }
    own
}

/// FNV-1a, 64 bits. Must stay the same in all versions of this program.
///
/// Source: Fowler, Noll and Vo, "The FNV Non-Cryptographic Hash Algorithm".
fn hash(name: &[u8]) -> u64 {
    name.iter()
        .fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn member(name: &str, static_assignment: &str) -> Member {
        Member {
            name: name.into(),
            process: String::new(),
            state: MemberState::Active,
            static_assignment: static_assignment.to_owned(),
            heartbeat_at: 0,
            is_alive: true,
        }
    }

    fn count(partitions: u16) -> PartitionCount {
        PartitionCount::new(partitions).unwrap()
    }

    fn own(partitions: u16, members: &[Member], name: &str) -> Vec<u16> {
        assign(count(partitions), members, name).own.iter().map(|partition| partition.number()).collect()
    }

    /// Returns the owner of each partition, from each member's own computation. Fails if a partition has two owners.
    fn owners(partitions: u16, members: &[Member]) -> BTreeMap<u16, String> {
        let mut owners = BTreeMap::new();
        for member in members {
            for partition in assign(count(partitions), members, &member.name).own {
                let before = owners.insert(partition.number(), member.name.to_string());
                assert_eq!(before, None, "partition {partition} has two owners");
            }
        }
        owners
    }

    fn members(salt: u32, members: usize) -> Vec<Member> {
        (0..members).map(|i| member(&format!("host-{salt:x}-{i}"), "")).collect()
    }

    proptest! {
        #[test]
        fn every_partition_has_one_owner_and_loads_differ_by_one_at_most(
            partitions in 1..300_u16, n in 1..24_usize, salt: u32,
        ) {
            let members = members(salt, n);
            let owners = owners(partitions, &members);
            prop_assert_eq!(owners.len(), usize::from(partitions));
            let load = |member: &Member| owners.values().filter(|owner| member.name == ***owner).count();
            let (least, most) = (members.iter().map(load).min(), members.iter().map(load).max());
            prop_assert!(most.unwrap() - least.unwrap() <= 1);
        }

        #[test]
        fn the_assignment_does_not_depend_on_member_order(partitions in 1..100_u16, n in 1..9_usize, salt: u32) {
            let mut members = members(salt, n);
            let before = owners(partitions, &members);
            members.reverse();
            prop_assert_eq!(before, owners(partitions, &members));
        }
    }

    /// When a member joins, at least its share has to move. On average over many groups, little more moves.
    #[test]
    fn a_rebalance_moves_close_to_the_minimum() {
        for (partitions, n) in [(16, 2), (16, 4), (64, 4), (64, 8), (256, 8)] {
            let groups = 40;
            let mut moved = 0;
            for salt in 0..groups {
                let mut members = members(salt, n);
                let before = owners(partitions, &members);
                members.push(member("newcomer", ""));
                let after = owners(partitions, &members);
                moved += before.iter().filter(|(partition, owner)| after[partition] != **owner).count();
            }
            let share = moved as f64 / f64::from(groups) / f64::from(partitions);
            let least = 1.0 / (n as f64 + 1.0);
            assert!(share < least * 1.8, "{partitions} partitions, {n} members: {share} of {least}");
        }
    }

    #[test]
    fn surplus_members_are_standby() {
        let members = members(7, 5);
        let with_work = members.iter().filter(|m| !assign(count(3), &members, &m.name).own.is_empty());
        assert_eq!(with_work.count(), 3);
    }

    #[test]
    fn a_leaving_member_has_no_partitions() {
        let mut members = members(1, 2);
        members[0].state = MemberState::Leaving;
        assert!(assign(count(4), &members, &members[0].name).own.is_empty());
        assert_eq!(assign(count(4), &members, &members[1].name).own.len(), 4);
    }

    #[test]
    fn a_stuck_member_has_no_partitions_while_others_are_active() {
        let mut members = members(1, 2);
        members[0].state = MemberState::Stuck;
        assert!(assign(count(4), &members, &members[0].name).own.is_empty());
        assert_eq!(assign(count(4), &members, &members[1].name).own.len(), 4);
        members[1].state = MemberState::Stuck;
        assert_eq!(owners(4, &members).len(), 4);
    }

    #[test]
    fn static_assignments_are_respected_and_the_others_share_the_rest() {
        let all = [member("a", "0-1"), member("b", "9"), member("c", ""), member("d", "")];
        let numbers = |name| own(8, &all, name);
        assert_eq!(numbers("a"), [0, 1]);
        assert!(numbers("b").is_empty(), "there is no partition 9");
        let mut shared = [numbers("c"), numbers("d")].concat();
        shared.sort_unstable();
        assert_eq!(shared, [2, 3, 4, 5, 6, 7]);

        let orphans = assign(count(8), &all[..2], "a").orphans;
        assert_eq!(orphans.iter().map(|p| p.number()).collect::<Vec<_>>(), [2, 3, 4, 5, 6, 7]);
    }

    /// Versions that run at the same time must agree, so these values must never change.
    #[test]
    fn the_assignment_is_the_same_in_every_version() {
        let all = members(0xabc, 3);
        let assigned: Vec<_> = all.iter().map(|member| own(8, &all, &member.name.to_string())).collect();
        assert_eq!(assigned, [vec![4, 5, 7], vec![0, 1, 2], vec![3, 6]]);
    }
}
