"""Every room stands on this one: settings, registries, the store, progress, threads; no experiment."""
