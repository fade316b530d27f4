// Package upstream signs people in at identity providers of their company: OpenID Connect, plain OAuth 2.0 (企业微信, 钉钉,
// 飞书), SAML 2.0. It turns what a provider says into an Identity, an Identity into an account, and the end of a session
// there into the end of the sessions here. Pages and the sign-in attempt are package sso's.
package upstream
