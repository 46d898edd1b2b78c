"""The data plane: header-only Cython floors. A floor cimports only itself and the floors below it."""
