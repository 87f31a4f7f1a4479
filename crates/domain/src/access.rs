//! Local RBAC: data actions, roles, assignments, and the proof that a caller may act.
