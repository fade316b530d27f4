// Package account is the only writer of users, devices, sessions, tokens, end-to-end encryption keys and account data.
package account

// Accounts reads and writes accounts.
type Accounts struct{}
