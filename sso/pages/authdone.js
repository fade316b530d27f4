// Tells the app that opened this page that its user has confirmed.
// Matrix client-server API, "Fallback" of user-interactive authentication.
if (window.onAuthDone) {
  window.onAuthDone();
} else if (window.opener && window.opener.postMessage) {
  window.opener.postMessage("authDone", "*");
}
