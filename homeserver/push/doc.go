// Package push holds everything of the specification's "Push Notifications" module: the push rules of users with their
// endpoints, a compiled evaluator of them, the compact features of events from which unread counts are made, and the
// pushers with their delivery to HTTP push gateways.
//
// The rules (rules*.go) and features (features.go) are pure functions; the rest stands on package store.
package push
