/*
 * What Python may call of libbpf 1.7: the text that cffi reads (API mode: a C compiler lays out the
 * structs, so "...;" hides members we do not name, and the opts structs may grow).
 * Enum parameters are plain ints here; the enums themselves are in enums.py.
 */
typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;

enum bpf_attach_type {
	BPF_CGROUP_INET_INGRESS,
	...
};
enum bpf_prog_type {
	BPF_PROG_TYPE_UNSPEC,
	...
};
enum bpf_tc_attach_point {
	BPF_TC_INGRESS,
	BPF_TC_EGRESS,
	...
};

/* --- version and errors ------------------------------------------------------------------------ */
__u32 libbpf_major_version(void);
__u32 libbpf_minor_version(void);
const char *libbpf_version_string(void);
int libbpf_strerror(int err, char *buf, size_t size);
const char *libbpf_bpf_attach_type_str(int type);
const char *libbpf_bpf_link_type_str(int type);
const char *libbpf_bpf_map_type_str(int type);
const char *libbpf_bpf_prog_type_str(int type);

/* --- objects ------------------------------------------------------------------------------------ */
struct bpf_object;
struct bpf_program;
struct bpf_map;
struct bpf_link;
struct btf;

struct bpf_object_open_opts {
	size_t sz;
	const char *object_name;
	bool relaxed_maps;
	const char *pin_root_path;
	const char *kconfig;
	const char *btf_custom_path;
	char *kernel_log_buf;
	size_t kernel_log_size;
	__u32 kernel_log_level;
	const char *bpf_token_path;
	...;
};
struct bpf_object *bpf_object__open_file(const char *path, const struct bpf_object_open_opts *opts);
struct bpf_object *bpf_object__open_mem(const void *data, size_t size, const struct bpf_object_open_opts *opts);
int bpf_object__prepare(struct bpf_object *obj);
int bpf_object__load(struct bpf_object *obj);
void bpf_object__close(struct bpf_object *obj);
const char *bpf_object__name(const struct bpf_object *obj);
int bpf_object__token_fd(const struct bpf_object *obj);
struct btf *bpf_object__btf(const struct bpf_object *obj);
int bpf_object__btf_fd(const struct bpf_object *obj);
struct bpf_program *bpf_object__find_program_by_name(const struct bpf_object *obj, const char *name);
struct bpf_program *bpf_object__next_program(const struct bpf_object *obj, struct bpf_program *prog);
struct bpf_map *bpf_object__find_map_by_name(const struct bpf_object *obj, const char *name);
struct bpf_map *bpf_object__next_map(const struct bpf_object *obj, const struct bpf_map *map);

/* --- programs of an object ---------------------------------------------------------------------- */
const char *bpf_program__name(const struct bpf_program *prog);
const char *bpf_program__section_name(const struct bpf_program *prog);
int bpf_program__type(const struct bpf_program *prog);
int bpf_program__set_type(struct bpf_program *prog, int type);
int bpf_program__expected_attach_type(const struct bpf_program *prog);
int bpf_program__set_expected_attach_type(struct bpf_program *prog, int type);
bool bpf_program__autoload(const struct bpf_program *prog);
int bpf_program__set_autoload(struct bpf_program *prog, bool autoload);
bool bpf_program__autoattach(const struct bpf_program *prog);
void bpf_program__set_autoattach(struct bpf_program *prog, bool autoattach);
int bpf_program__set_attach_target(struct bpf_program *prog, int attach_prog_fd, const char *attach_func_name);
__u32 bpf_program__flags(const struct bpf_program *prog);
int bpf_program__set_flags(struct bpf_program *prog, __u32 flags);
void bpf_program__set_ifindex(struct bpf_program *prog, __u32 ifindex);
int bpf_program__set_log_level(struct bpf_program *prog, __u32 log_level);
int bpf_program__set_log_buf(struct bpf_program *prog, char *log_buf, size_t log_size);
const char *bpf_program__log_buf(const struct bpf_program *prog, size_t *log_size);
const struct bpf_insn *bpf_program__insns(const struct bpf_program *prog);
size_t bpf_program__insn_cnt(const struct bpf_program *prog);
int bpf_program__set_insns(struct bpf_program *prog, struct bpf_insn *insns, size_t count);
struct bpf_func_info *bpf_program__func_info(const struct bpf_program *prog);
__u32 bpf_program__func_info_cnt(const struct bpf_program *prog);
struct bpf_line_info *bpf_program__line_info(const struct bpf_program *prog);
__u32 bpf_program__line_info_cnt(const struct bpf_program *prog);
int bpf_program__fd(const struct bpf_program *prog);
int bpf_program__pin(struct bpf_program *prog, const char *path);
int bpf_program__unpin(struct bpf_program *prog, const char *path);
int libbpf_prog_type_by_name(const char *name, enum bpf_prog_type *prog_type,
			     enum bpf_attach_type *expected_attach_type);

struct bpf_insn {
	__u8 code;
	__s32 imm;
	...;
};
struct bpf_func_info {
	__u32 insn_off;
	__u32 type_id;
};
struct bpf_line_info {
	__u32 insn_off;
	__u32 file_name_off;
	__u32 line_off;
	__u32 line_col;
};

/* --- maps of an object -------------------------------------------------------------------------- */
const char *bpf_map__name(const struct bpf_map *map);
int bpf_map__fd(const struct bpf_map *map);
int bpf_map__reuse_fd(struct bpf_map *map, int fd);
int bpf_map__type(const struct bpf_map *map);
int bpf_map__set_type(struct bpf_map *map, int type);
__u32 bpf_map__max_entries(const struct bpf_map *map);
int bpf_map__set_max_entries(struct bpf_map *map, __u32 max_entries);
__u32 bpf_map__map_flags(const struct bpf_map *map);
int bpf_map__set_map_flags(struct bpf_map *map, __u32 flags);
__u32 bpf_map__numa_node(const struct bpf_map *map);
int bpf_map__set_numa_node(struct bpf_map *map, __u32 numa_node);
__u32 bpf_map__key_size(const struct bpf_map *map);
int bpf_map__set_key_size(struct bpf_map *map, __u32 size);
__u32 bpf_map__value_size(const struct bpf_map *map);
int bpf_map__set_value_size(struct bpf_map *map, __u32 size);
__u32 bpf_map__btf_key_type_id(const struct bpf_map *map);
__u32 bpf_map__btf_value_type_id(const struct bpf_map *map);
__u64 bpf_map__map_extra(const struct bpf_map *map);
int bpf_map__set_map_extra(struct bpf_map *map, __u64 map_extra);
int bpf_map__set_ifindex(struct bpf_map *map, __u32 ifindex);
int bpf_map__set_initial_value(struct bpf_map *map, const void *data, size_t size);
void *bpf_map__initial_value(const struct bpf_map *map, size_t *size);
bool bpf_map__is_internal(const struct bpf_map *map);
int bpf_map__set_pin_path(struct bpf_map *map, const char *path);
const char *bpf_map__pin_path(const struct bpf_map *map);
bool bpf_map__is_pinned(const struct bpf_map *map);
int bpf_map__set_inner_map_fd(struct bpf_map *map, int fd);
struct bpf_map *bpf_map__inner_map(struct bpf_map *map);
bool bpf_map__autocreate(const struct bpf_map *map);
int bpf_map__set_autocreate(struct bpf_map *map, bool autocreate);
int bpf_map__set_autoattach(struct bpf_map *map, bool autoattach);
struct bpf_link *bpf_map__attach_struct_ops(const struct bpf_map *map);

/* --- links that libbpf makes -------------------------------------------------------------------- */
int bpf_link__fd(const struct bpf_link *link);
int bpf_link__pin(struct bpf_link *link, const char *path);
int bpf_link__unpin(struct bpf_link *link);
int bpf_link__detach(struct bpf_link *link);
void bpf_link__disconnect(struct bpf_link *link);
int bpf_link__destroy(struct bpf_link *link);
int bpf_link__update_map(struct bpf_link *link, const struct bpf_map *map);

/* --- the bpf() system call: programs ------------------------------------------------------------- */
struct bpf_prog_load_opts {
	size_t sz;
	int attempts;
	enum bpf_attach_type expected_attach_type;
	__u32 prog_btf_fd;
	__u32 prog_flags;
	__u32 prog_ifindex;
	__u32 kern_version;
	__u32 attach_btf_id;
	__u32 attach_prog_fd;
	__u32 attach_btf_obj_fd;
	const int *fd_array;
	const void *func_info;
	__u32 func_info_cnt;
	__u32 func_info_rec_size;
	const void *line_info;
	__u32 line_info_cnt;
	__u32 line_info_rec_size;
	__u32 log_level;
	__u32 log_size;
	char *log_buf;
	__u32 log_true_size;
	__u32 token_fd;
	__u32 fd_array_cnt;
	...;
};
int bpf_prog_load(int type, const char *name, const char *license, const struct bpf_insn *insns, size_t count,
		  struct bpf_prog_load_opts *opts);

struct bpf_prog_bind_opts {
	size_t sz;
	__u32 flags;
	...;
};
int bpf_prog_bind_map(int prog_fd, int map_fd, const struct bpf_prog_bind_opts *opts);

struct bpf_test_run_opts {
	size_t sz;
	const void *data_in;
	void *data_out;
	__u32 data_size_in;
	__u32 data_size_out;
	const void *ctx_in;
	void *ctx_out;
	__u32 ctx_size_in;
	__u32 ctx_size_out;
	__u32 retval;
	int repeat;
	__u32 duration;
	__u32 flags;
	__u32 cpu;
	__u32 batch_size;
	...;
};
int bpf_prog_test_run_opts(int prog_fd, struct bpf_test_run_opts *opts);
int bpf_enable_stats(int type);

struct bpf_prog_attach_opts {
	size_t sz;
	__u32 flags;
	int replace_prog_fd;
	int relative_fd;
	__u32 relative_id;
	__u64 expected_revision;
	...;
};
struct bpf_prog_detach_opts {
	size_t sz;
	__u32 flags;
	int relative_fd;
	__u32 relative_id;
	__u64 expected_revision;
	...;
};
int bpf_prog_attach_opts(int prog_fd, int target, int type, const struct bpf_prog_attach_opts *opts);
int bpf_prog_detach_opts(int prog_fd, int target, int type, const struct bpf_prog_detach_opts *opts);
int bpf_prog_attach(int prog_fd, int attachable_fd, int type, unsigned int flags);
int bpf_prog_detach2(int prog_fd, int attachable_fd, int type);

struct bpf_prog_query_opts {
	size_t sz;
	__u32 query_flags;
	__u32 attach_flags;
	__u32 *prog_ids;
	__u32 count;
	__u32 *prog_attach_flags;
	__u32 *link_ids;
	__u32 *link_attach_flags;
	__u64 revision;
	...;
};
int bpf_prog_query_opts(int target, int type, struct bpf_prog_query_opts *opts);

struct bpf_prog_stream_read_opts {
	size_t sz;
	...;
};
int bpf_prog_stream_read(int prog_fd, __u32 stream_id, void *buf, __u32 buf_len,
			 struct bpf_prog_stream_read_opts *opts);

/* --- the bpf() system call: links ----------------------------------------------------------------- */
union bpf_iter_link_info {
	struct {
		__u32 map_fd;
	} map;
	struct {
		__u32 tid;
		__u32 pid;
		__u32 pid_fd;
	} task;
	...;
};
struct bpf_link_create_opts {
	size_t sz;
	__u32 flags;
	union bpf_iter_link_info *iter_info;
	__u32 iter_info_len;
	__u32 target_btf_id;
	union {
		struct {
			__u64 bpf_cookie;
		} perf_event;
		struct {
			__u32 flags;
			__u32 cnt;
			const char **syms;
			const unsigned long *addrs;
			const __u64 *cookies;
		} kprobe_multi;
		struct {
			__u64 cookie;
		} tracing;
		struct {
			__u32 pf;
			__u32 hooknum;
			__s32 priority;
			__u32 flags;
		} netfilter;
		struct {
			__u32 relative_fd;
			__u32 relative_id;
			__u64 expected_revision;
		} tcx;
		struct {
			__u32 relative_fd;
			__u32 relative_id;
			__u64 expected_revision;
		} netkit;
		struct {
			__u32 relative_fd;
			__u32 relative_id;
			__u64 expected_revision;
		} cgroup;
	};
	...;
};
int bpf_link_create(int prog_fd, int target_fd, int attach_type, const struct bpf_link_create_opts *opts);
int bpf_link_detach(int link_fd);
struct bpf_link_update_opts {
	size_t sz;
	__u32 flags;
	__u32 old_prog_fd;
	__u32 old_map_fd;
	...;
};
int bpf_link_update(int link_fd, int new_prog_fd, const struct bpf_link_update_opts *opts);
int bpf_iter_create(int link_fd);

struct bpf_raw_tp_opts {
	size_t sz;
	const char *tp_name;
	__u64 cookie;
	...;
};
int bpf_raw_tracepoint_open_opts(int prog_fd, struct bpf_raw_tp_opts *opts);
int bpf_raw_tracepoint_open(const char *name, int prog_fd);
int bpf_task_fd_query(int pid, int fd, __u32 flags, char *buf, __u32 *buf_len, __u32 *prog_id, __u32 *fd_type,
		      __u64 *probe_offset, __u64 *probe_addr);

/* --- the bpf() system call: maps ------------------------------------------------------------------ */
struct bpf_map_create_opts {
	size_t sz;
	__u32 btf_fd;
	__u32 btf_key_type_id;
	__u32 btf_value_type_id;
	__u32 btf_vmlinux_value_type_id;
	__u32 inner_map_fd;
	__u32 map_flags;
	__u64 map_extra;
	__u32 numa_node;
	__u32 map_ifindex;
	__s32 value_type_btf_obj_fd;
	__u32 token_fd;
	const void *excl_prog_hash;
	__u32 excl_prog_hash_size;
	...;
};
int bpf_map_create(int map_type, const char *name, __u32 key_size, __u32 value_size, __u32 max_entries,
		   const struct bpf_map_create_opts *opts);
int bpf_map_update_elem(int fd, const void *key, const void *value, __u64 flags);
int bpf_map_lookup_elem(int fd, const void *key, void *value);
int bpf_map_lookup_elem_flags(int fd, const void *key, void *value, __u64 flags);
int bpf_map_lookup_and_delete_elem(int fd, const void *key, void *value);
int bpf_map_lookup_and_delete_elem_flags(int fd, const void *key, void *value, __u64 flags);
int bpf_map_delete_elem(int fd, const void *key);
int bpf_map_delete_elem_flags(int fd, const void *key, __u64 flags);
int bpf_map_get_next_key(int fd, const void *key, void *next_key);
int bpf_map_freeze(int fd);

struct bpf_map_batch_opts {
	size_t sz;
	__u64 elem_flags;
	__u64 flags;
	...;
};
int bpf_map_delete_batch(int fd, const void *keys, __u32 *count, const struct bpf_map_batch_opts *opts);
int bpf_map_lookup_batch(int fd, void *in_batch, void *out_batch, void *keys, void *values, __u32 *count,
			 const struct bpf_map_batch_opts *opts);
int bpf_map_lookup_and_delete_batch(int fd, void *in_batch, void *out_batch, void *keys, void *values,
				    __u32 *count, const struct bpf_map_batch_opts *opts);
int bpf_map_update_batch(int fd, const void *keys, const void *values, __u32 *count,
			 const struct bpf_map_batch_opts *opts);

/* --- the bpf() system call: pins, ids, information --------------------------------------------------- */
struct bpf_obj_pin_opts {
	size_t sz;
	__u32 file_flags;
	int path_fd;
	...;
};
struct bpf_obj_get_opts {
	size_t sz;
	__u32 file_flags;
	int path_fd;
	...;
};
int bpf_obj_pin(int fd, const char *path);
int bpf_obj_pin_opts(int fd, const char *path, const struct bpf_obj_pin_opts *opts);
int bpf_obj_get(const char *path);
int bpf_obj_get_opts(const char *path, const struct bpf_obj_get_opts *opts);
struct bpf_get_fd_by_id_opts {
	size_t sz;
	__u32 open_flags;
	__u32 token_fd;
	...;
};
int bpf_prog_get_next_id(__u32 start, __u32 *next);
int bpf_map_get_next_id(__u32 start, __u32 *next);
int bpf_btf_get_next_id(__u32 start, __u32 *next);
int bpf_link_get_next_id(__u32 start, __u32 *next);
int bpf_prog_get_fd_by_id(__u32 id);
int bpf_map_get_fd_by_id(__u32 id);
int bpf_map_get_fd_by_id_opts(__u32 id, const struct bpf_get_fd_by_id_opts *opts);
int bpf_btf_get_fd_by_id(__u32 id);
int bpf_link_get_fd_by_id(__u32 id);

struct bpf_prog_info {
	__u32 type;
	__u32 id;
	__u32 jited_prog_len;
	__u32 xlated_prog_len;
	__u64 xlated_prog_insns;
	__u64 load_time;
	__u32 created_by_uid;
	__u32 nr_map_ids;
	__u64 map_ids;
	char name[16];
	__u32 ifindex;
	__u64 netns_dev;
	__u64 netns_ino;
	__u32 nr_jited_ksyms;
	__u32 nr_jited_func_lens;
	__u64 jited_ksyms;
	__u64 jited_func_lens;
	__u32 btf_id;
	__u32 func_info_rec_size;
	__u64 func_info;
	__u32 nr_func_info;
	__u64 run_time_ns;
	__u64 run_cnt;
	__u64 recursion_misses;
	__u32 verified_insns;
	__u32 attach_btf_obj_id;
	__u32 attach_btf_id;
	...;
};
struct bpf_map_info {
	__u32 type;
	__u32 id;
	__u32 key_size;
	__u32 value_size;
	__u32 max_entries;
	__u32 map_flags;
	char name[16];
	__u32 ifindex;
	__u32 btf_vmlinux_value_type_id;
	__u64 netns_dev;
	__u64 netns_ino;
	__u32 btf_id;
	__u32 btf_key_type_id;
	__u32 btf_value_type_id;
	__u32 btf_vmlinux_id;
	__u64 map_extra;
	...;
};
struct bpf_btf_info {
	__u64 btf;
	__u32 btf_size;
	__u32 id;
	__u64 name;
	__u32 name_len;
	__u32 kernel_btf;
	...;
};
struct bpf_link_info {
	__u32 type;
	__u32 id;
	__u32 prog_id;
	union {
		struct {
			__u64 tp_name;
			__u32 tp_name_len;
			__u32 reserved;
			__u64 cookie;
		} raw_tracepoint;
		struct {
			__u32 attach_type;
			__u32 target_obj_id;
			__u32 target_btf_id;
			__u32 reserved;
			__u64 cookie;
		} tracing;
		struct {
			__u64 cgroup_id;
			__u32 attach_type;
		} cgroup;
		struct {
			__u32 netns_ino;
			__u32 attach_type;
		} netns;
		struct {
			__u32 ifindex;
		} xdp;
		struct {
			__u32 map_id;
		} struct_ops;
		struct {
			__u32 pf;
			__u32 hooknum;
			__s32 priority;
			__u32 flags;
		} netfilter;
		struct {
			__u64 addrs;
			__u32 count;
			__u32 flags;
			__u64 missed;
			__u64 cookies;
		} kprobe_multi;
		struct {
			__u32 ifindex;
			__u32 attach_type;
		} tcx;
		struct {
			__u32 ifindex;
			__u32 attach_type;
		} netkit;
	};
	...;
};
int bpf_prog_get_info_by_fd(int fd, struct bpf_prog_info *info, __u32 *size);
int bpf_map_get_info_by_fd(int fd, struct bpf_map_info *info, __u32 *size);
int bpf_btf_get_info_by_fd(int fd, struct bpf_btf_info *info, __u32 *size);
int bpf_link_get_info_by_fd(int fd, struct bpf_link_info *info, __u32 *size);

struct bpf_token_create_opts {
	size_t sz;
	__u32 flags;
	...;
};
int bpf_token_create(int bpffs_fd, struct bpf_token_create_opts *opts);

/* --- XDP and TC over netlink (kernels without XDP links, without TCX) ---------------------------------- */
struct bpf_xdp_attach_opts {
	size_t sz;
	int old_prog_fd;
	...;
};
struct bpf_xdp_query_opts {
	size_t sz;
	__u32 prog_id;
	__u32 drv_prog_id;
	__u32 hw_prog_id;
	__u32 skb_prog_id;
	__u8 attach_mode;
	__u64 feature_flags;
	...;
};
int bpf_xdp_attach(int ifindex, int prog_fd, __u32 flags, const struct bpf_xdp_attach_opts *opts);
int bpf_xdp_detach(int ifindex, __u32 flags, const struct bpf_xdp_attach_opts *opts);
int bpf_xdp_query(int ifindex, int flags, struct bpf_xdp_query_opts *opts);

struct bpf_tc_hook {
	size_t sz;
	int ifindex;
	enum bpf_tc_attach_point attach_point;
	__u32 parent;
	...;
};
struct bpf_tc_opts {
	size_t sz;
	int prog_fd;
	__u32 flags;
	__u32 prog_id;
	__u32 handle;
	__u32 priority;
	...;
};
int bpf_tc_hook_create(struct bpf_tc_hook *hook);
int bpf_tc_hook_destroy(struct bpf_tc_hook *hook);
int bpf_tc_attach(const struct bpf_tc_hook *hook, struct bpf_tc_opts *opts);
int bpf_tc_detach(const struct bpf_tc_hook *hook, const struct bpf_tc_opts *opts);
int bpf_tc_query(const struct bpf_tc_hook *hook, struct bpf_tc_opts *opts);

/* --- rings that user space fills ------------------------------------------------------------------------ */
struct user_ring_buffer;
struct user_ring_buffer_opts {
	size_t sz;
	...;
};
struct user_ring_buffer *user_ring_buffer__new(int map_fd, const struct user_ring_buffer_opts *opts);
void *user_ring_buffer__reserve(struct user_ring_buffer *rb, __u32 size);
void *user_ring_buffer__reserve_blocking(struct user_ring_buffer *rb, __u32 size, int timeout_ms);
void user_ring_buffer__submit(struct user_ring_buffer *rb, void *sample);
void user_ring_buffer__discard(struct user_ring_buffer *rb, void *sample);
void user_ring_buffer__free(struct user_ring_buffer *rb);

/* --- BTF --------------------------------------------------------------------------------------------------- */
struct btf_type {
	__u32 name_off;
	__u32 info;
	union {
		__u32 size;
		__u32 type;
	};
};
void btf__free(struct btf *btf);
struct btf *btf__new(const void *data, __u32 size);
struct btf *btf__new_split(const void *data, __u32 size, struct btf *base);
struct btf *btf__new_empty(void);
struct btf *btf__parse(const char *path, struct btf_ext **ext);
struct btf *btf__parse_split(const char *path, struct btf *base);
struct btf *btf__load_vmlinux_btf(void);
struct btf *btf__load_module_btf(const char *module, struct btf *vmlinux);
struct btf *btf__load_from_kernel_by_id(__u32 id);
struct btf *btf__load_from_kernel_by_id_split(__u32 id, struct btf *base);
int btf__load_into_kernel(struct btf *btf);
int btf__fd(const struct btf *btf);
const struct btf *btf__base_btf(const struct btf *btf);
__s32 btf__find_by_name(const struct btf *btf, const char *name);
__s32 btf__find_by_name_kind(const struct btf *btf, const char *name, __u32 kind);
__u32 btf__type_cnt(const struct btf *btf);
const struct btf_type *btf__type_by_id(const struct btf *btf, __u32 id);
const char *btf__name_by_offset(const struct btf *btf, __u32 offset);
const void *btf__raw_data(const struct btf *btf, __u32 *size);
__s64 btf__resolve_size(const struct btf *btf, __u32 id);
int btf__align_of(const struct btf *btf, __u32 id);
int btf__add_int(struct btf *btf, const char *name, size_t size, int encoding);
int btf__add_ptr(struct btf *btf, int type_id);
int btf__add_array(struct btf *btf, int index_type_id, int element_type_id, __u32 count);
int btf__add_struct(struct btf *btf, const char *name, __u32 size);
int btf__add_union(struct btf *btf, const char *name, __u32 size);
int btf__add_field(struct btf *btf, const char *name, int type_id, __u32 bit_offset, __u32 bit_size);
int btf__add_enum(struct btf *btf, const char *name, __u32 size);
int btf__add_enum_value(struct btf *btf, const char *name, __s64 value);
int btf__add_typedef(struct btf *btf, const char *name, int type_id);
int btf__add_const(struct btf *btf, int type_id);
int btf__add_func_proto(struct btf *btf, int return_type_id);
int btf__add_func_param(struct btf *btf, const char *name, int type_id);
int btf__add_var(struct btf *btf, const char *name, int linkage, int type_id);
int btf__add_datasec(struct btf *btf, const char *name, __u32 size);
int btf__add_datasec_var_info(struct btf *btf, int type_id, __u32 offset, __u32 size);

/* --- probes --------------------------------------------------------------------------------------------------- */
int libbpf_probe_bpf_prog_type(int type, const void *opts);
int libbpf_probe_bpf_map_type(int type, const void *opts);
int libbpf_probe_bpf_helper(int type, int helper, const void *opts);
int libbpf_num_possible_cpus(void);

/* --- shim.c: what needs C -------------------------------------------------------------------------------------- */
void ptrace_log_install(void);
void ptrace_log_clear(void);
const char *ptrace_log_text(void);

struct ptrace_btf_entry {
	__u32 id;
	__u32 type;
	__u32 count;
	__s32 argument;
	__u32 traceable;
};
int ptrace_btf_index(const struct btf *btf, __u32 first, __u32 kind, const char *argument,
		     struct ptrace_btf_entry *entries, char *names, size_t *names_size);

struct ptrace_types {
	const struct ptrace_types *base;
	__u32 first_id;
	__u32 end_id;
	__u32 bad_id;
	__u32 bad_kind;
	...;
};
struct ptrace_function {
	__u32 id;
	__u32 name;
	__u32 prototypes;
	__s32 returned;
	__u32 trampoline;
	__u32 parameters;
};
struct ptrace_parameter {
	__u32 slot;
	__u32 structure;
	__u32 pointers;
};
int ptrace_types_read(struct ptrace_types *types, const void *data, size_t size);
void ptrace_types_free(struct ptrace_types *types);
const __u32 *ptrace_types_at(const struct ptrace_types *types, __u32 id);
const char *ptrace_types_name(const struct ptrace_types *types, __u32 offset);
int ptrace_types_functions(const struct ptrace_types *types, const char *structs, __u32 count,
			   struct ptrace_function *functions, __u32 functions_room,
			   struct ptrace_parameter *parameters, __u32 parameters_room, __u32 *parameters_used);

struct ptrace_text {
	char *data;
	size_t size;
};
int ptrace_text_read(const char *path, struct ptrace_text *text);
void ptrace_text_free(struct ptrace_text *text);

struct ptrace_hit {
	__u32 key;
	__u32 line;
};
int ptrace_lines_find(const char *text, size_t text_size, __u32 skip, const char *keys, size_t keys_size,
		      struct ptrace_hit *hits, __u32 room);

int ptrace_tracing_multi_link(int program, __u32 attach_type, const __u32 *btf_ids, const __u64 *cookies, __u32 count);

int ptrace_perf_event_open(__u32 type, __u64 config, const char *function, __u64 address);

struct ptrace_perf {
	char *data;
	size_t used;
	__u64 lost;
	__u64 truncated;
	...;
};
struct ptrace_perf *ptrace_perf_new(int map_fd, size_t pages);
int ptrace_perf_fileno(const struct ptrace_perf *perf);
int ptrace_perf_poll(struct ptrace_perf *perf, int timeout_ms);
void ptrace_perf_free(struct ptrace_perf *perf);

struct ptrace_rings {
	__u64 records;
	__u64 bytes;
	__u64 discarded;
	__u64 out_of_order;
	__u64 last_timestamp;
	__u64 held_timestamp;
	__u64 bad_records;
	__u32 bad_size;
	__u32 bad_ring;
	__u64 used;
	...;
};
struct ptrace_rings *ptrace_rings_new(const int *map_fds, const __u32 *sizes, __u32 count, __u32 timestamp_offset,
				      __u32 max_record);
int ptrace_rings_keep(struct ptrace_rings *rings, const int *map_fds, size_t limit, __u64 window_ns, size_t data_size,
		      __u32 capacity);
void ptrace_rings_free(struct ptrace_rings *rings);
int ptrace_rings_fileno(const struct ptrace_rings *rings);
int ptrace_rings_announce(struct ptrace_rings *rings, __u64 delay_ns);
int ptrace_rings_wait(struct ptrace_rings *rings, int timeout_ms);
int ptrace_rings_watch(struct ptrace_rings *rings, int look_ms, int timeout_ms);
int ptrace_rings_pending(struct ptrace_rings *rings);
int ptrace_rings_read(struct ptrace_rings *rings, __u64 before_ns, __u8 *data, size_t data_size, __u32 *offsets,
		      __u32 *sizes, __u32 capacity);
