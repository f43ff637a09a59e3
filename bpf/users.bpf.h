/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/*
 * Which process a socket belongs to: the one that created it or was the last to connect it or, for UDP without a
 * connection, to send or receive with it. It is stored in the socket, so that it disappears with the socket, and also
 * applies to packets for which no process runs (acknowledgements, or everything received) and after the process has
 * ended. The kernel's own sockets belong to no process.
 */
#ifndef USERS_BPF_H
#define USERS_BPF_H

#include "socket.bpf.h"

#define BPF_MAP_TYPE_SK_STORAGE 24
#define BPF_F_NO_PREALLOC (1U << 0)
#define BPF_F_CLONE (1U << 9)
#define BPF_SK_STORAGE_GET_F_CREATE 1
#define ALLOW 1

/* TASK_COMM_LEN */
#define PROCESS_NAME 16

struct task_struct {
	struct task_struct *group_leader;
	char comm[PROCESS_NAME];
} KERNEL;

/* include/uapi/linux/bpf.h, up to the last field that is used */
struct bpf_sock_addr {
	__u32 user_family;
	__u32 user_ip4;
	__u32 user_ip6[4];
	__u32 user_port;
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 msg_src_ip4;
	__u32 msg_src_ip6[4];
	__u64 sk;
};
_Static_assert(__builtin_offsetof(struct bpf_sock_addr, sk) == 64, "uapi layout");

struct user {
	char name[PROCESS_NAME];
};

/* An accepted socket inherits its listener's. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct user);
} users SEC(".maps");

static __always_inline bool is_same(const struct user *one, const struct user *other)
{
	const __u64 *a = (const void *)one, *b = (const void *)other;

	return a[0] == b[0] && a[1] == b[1];
}

/* Zero-padded, so that all of it can be compared. */
static __always_inline struct user current_process(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct user now = {};

	bpf_probe_read_kernel_str(now.name, sizeof(now.name), BPF_CORE_READ(task, group_leader, comm));
	return now;
}

SEC("cgroup/sock_create")
int socket_created(struct bpf_sock *sk)
{
	struct user now = current_process();

	bpf_sk_storage_get(&users, sk, &now, BPF_SK_STORAGE_GET_F_CREATE);
	return ALLOW;
}

static __always_inline int used(struct bpf_sock_addr *ctx)
{
	struct user now = current_process(), *before;
	struct bpf_sock *sk = (void *)(long)ctx->sk;

	if (!sk)
		return ALLOW;
	before = bpf_sk_storage_get(&users, sk, 0, 0);
	if (before && is_same(before, &now))
		return ALLOW;
	/* Never written in place: a concurrent reader would see a mixture of two names. */
	if (before)
		bpf_sk_storage_delete(&users, sk);
	bpf_sk_storage_get(&users, sk, &now, BPF_SK_STORAGE_GET_F_CREATE);
	return ALLOW;
}

SEC("cgroup/connect4")
int connected4(struct bpf_sock_addr *ctx)
{
	return used(ctx);
}

SEC("cgroup/connect6")
int connected6(struct bpf_sock_addr *ctx)
{
	return used(ctx);
}

/* For UDP without a connection. */
SEC("cgroup/sendmsg4")
int sent4(struct bpf_sock_addr *ctx)
{
	return used(ctx);
}

SEC("cgroup/sendmsg6")
int sent6(struct bpf_sock_addr *ctx)
{
	return used(ctx);
}

SEC("cgroup/recvmsg4")
int received4(struct bpf_sock_addr *ctx)
{
	return used(ctx);
}

SEC("cgroup/recvmsg6")
int received6(struct bpf_sock_addr *ctx)
{
	return used(ctx);
}

/* Copies the name of the process that uses the packet's socket; `name` is unchanged if it is not known. */
static __always_inline void user_of(struct __sk_buff *skb, char *name)
{
	struct bpf_sock *sk = (void *)(long)skb->sk;
	struct user *user;

	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (!sk)
		return;
	user = bpf_sk_storage_get(&users, sk, 0, 0);
	if (user)
		__builtin_memcpy(name, user->name, PROCESS_NAME);
}

#endif
