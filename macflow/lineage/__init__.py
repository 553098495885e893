"""From any policy back to its data: what the lock, git, the cache, bundles and run cards each say of it."""
