"""What every room stands on: settings, registries, the store, progress, threads. It knows no experiment."""
