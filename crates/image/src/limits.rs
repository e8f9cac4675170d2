//! Every bound of this crate. What is larger is refused by name.

use std::time::Duration;

/// A manifest, an index, a configuration or a token answer, bytes.
pub const JSON_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Entries of one index.
pub const INDEX_ENTRIES_MAX: usize = 1024;
/// An index may name an index, this many times.
pub const INDEX_DEPTH_MAX: usize = 4;
/// One layer as it is fetched, bytes.
pub const BLOB_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;
/// One layer's tar, bytes; a bomb ends here.
pub const LAYER_BYTES_MAX: u64 = 32 * 1024 * 1024 * 1024;
/// All layers of one image as they are fetched, bytes.
pub const IMAGE_BYTES_MAX: u64 = 64 * 1024 * 1024 * 1024;
/// An image archive, uncompressed, bytes.
pub const ARCHIVE_BYTES_MAX: u64 = 64 * 1024 * 1024 * 1024;
/// Members of an image archive.
pub const ARCHIVE_ENTRIES_MAX: usize = 8192;
/// Symbolic links that are followed inside an image archive.
pub const ARCHIVE_LINKS_MAX: usize = 4;
/// `etc/passwd` or `etc/group` of a layer, bytes.
pub const CAPTURED_BYTES_MAX: usize = 1024 * 1024;
/// Groups that one user may be in (Linux's `NGROUPS_MAX` is 65,536).
pub const GROUPS_MAX: usize = 4096;
/// A reference, characters.
pub const REFERENCE_CHARS_MAX: usize = 512;
/// Docker's configuration file, bytes.
pub const DOCKER_CONFIG_BYTES_MAX: u64 = JSON_BYTES_MAX;

/// A zip file of code, bytes: as much as it may unpack to.
pub const CODE_ZIP_BYTES_MAX: u64 = CODE_BYTES_MAX;
/// A zip file's contents, bytes (AWS's limit); a bomb ends here.
pub const CODE_BYTES_MAX: u64 = 250 * 1024 * 1024;
/// Files, folders and links in it.
pub const CODE_ENTRIES_MAX: usize = 100_000;
/// What looks like an entry's header in it; archives in it have some, too.
pub const CODE_HEADERS_MAX: usize = 400_000;
/// A path in it, bytes.
pub const CODE_PATH_BYTES_MAX: usize = 3072;
/// One part of a path, bytes (Linux's `NAME_MAX`).
pub const CODE_NAME_BYTES_MAX: usize = 255;
/// Parts of a path.
pub const CODE_DEPTH_MAX: usize = 128;

/// Layers that one pull or import works on at once.
pub const LAYERS_AT_ONCE: usize = 4;
/// Chunks between the network and the decompression of one layer.
pub const NETWORK_CHUNKS: usize = 32;
/// Buffers between the decompression and the writing of one layer.
pub const TAR_CHUNKS: usize = 8;
/// One such buffer, bytes.
pub const TAR_CHUNK_BYTES: usize = 256 * 1024;

/// Redirects of one request.
pub const REDIRECTS_MAX: usize = 5;
/// Tries of one request in a row that get no further,
pub const TRIES_MAX: u32 = 5;
/// none of which begins so long after the first one failed.
pub const TRIES_FOR: Duration = Duration::from_secs(10);
/// The first and the longest wait between tries.
pub const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// A connection to a registry.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// From a request to the head of its answer.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two chunks of a body.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(20);
/// A whole pull or import.
pub const PULL_TIMEOUT: Duration = Duration::from_secs(3600);
/// Waiting for another process that uses the store.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at a lock that another holds.
pub const LOCK_POLL: Duration = Duration::from_millis(20);
/// A partial download that nobody touched for so long is removed when a store is opened.
pub const PARTIAL_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
