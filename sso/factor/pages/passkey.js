// Passkeys: a form with data-passkey="create" or "get" asks the browser by the options in data-options and sends what it
// answers in the field "credential". Spec: WebAuthn 3, section 5.1.
'use strict';
(function () {
  function bytes(text) {
    var raw = atob(text.replace(/-/g, '+').replace(/_/g, '/'));
    var out = new Uint8Array(raw.length);
    for (var i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  }
  function text(buffer) {
    var raw = '', view = new Uint8Array(buffer);
    for (var i = 0; i < view.length; i++) raw += String.fromCharCode(view[i]);
    return btoa(raw).replace(/\+/g, '-').replace(/\//g, '_').replace(/=+$/, '');
  }
  function list(descriptors) {
    return (descriptors || []).map(function (d) {
      return Object.assign({}, d, { id: bytes(d.id) });
    });
  }
  function answer(c) {
    var r = c.response, out = { clientDataJSON: text(r.clientDataJSON) };
    if (r.attestationObject) {
      out.attestationObject = text(r.attestationObject);
      if (r.getTransports) out.transports = r.getTransports();
    } else {
      out.authenticatorData = text(r.authenticatorData);
      out.signature = text(r.signature);
      if (r.userHandle) out.userHandle = text(r.userHandle);
    }
    return JSON.stringify({
      id: c.id, rawId: text(c.rawId), type: c.type, response: out,
      authenticatorAttachment: c.authenticatorAttachment || undefined, clientExtensionResults: {}
    });
  }
  function ask(form) {
    var options = JSON.parse(form.dataset.options).publicKey;
    options.challenge = bytes(options.challenge);
    if (form.dataset.passkey === 'create') {
      options.user = Object.assign({}, options.user, { id: bytes(options.user.id) });
      options.excludeCredentials = list(options.excludeCredentials);
      return navigator.credentials.create({ publicKey: options });
    }
    options.allowCredentials = list(options.allowCredentials);
    return navigator.credentials.get({ publicKey: options });
  }
  document.querySelectorAll('form[data-passkey]').forEach(function (form) {
    var problem = document.getElementById('passkey-problem'), button = form.querySelector('button');
    function complain(what) {
      problem.textContent = what;
      problem.hidden = false;
      button.disabled = false;
    }
    form.addEventListener('submit', function (event) {
      if (form.elements.credential.value) return;
      event.preventDefault();
      if (!window.PublicKeyCredential || !navigator.credentials) {
        complain(form.dataset.unsupported);
        return;
      }
      button.disabled = true;
      problem.hidden = true;
      ask(form).then(function (credential) {
        form.elements.credential.value = answer(credential);
        form.submit();
      }).catch(function () { complain(form.dataset.failed); });
    });
  });
})();
