package upstream

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"

	"github.com/beevik/etree"
	"github.com/crewjam/saml/xmlenc"
)

var errEncrypted = errors.New("the assertion is encrypted: set saml.encrypted, or switch the encryption off at the provider")

// checkEncrypted looks into the encrypted assertions of a response before the library does, which takes what is refused in the
// clear: signatures with SHA-1, and keys encrypted by PKCS #1 v1.5, whose errors can tell an attacker what is in them.
func (s *samlProvider) checkEncrypted(ctx context.Context, b []byte) error {
	doc := etree.NewDocument()
	if err := doc.ReadFromBytes(b); err != nil {
		return err
	}
	encrypted := doc.FindElements("//EncryptedAssertion")
	if len(encrypted) == 0 {
		return nil
	}
	if !s.cfg.SAML.Encrypted {
		return errEncrypted
	}
	k, err := s.ownKey(ctx)
	if err != nil {
		return err
	}
	for _, el := range encrypted {
		plain, err := decrypt(k.key, el)
		if err != nil {
			return fmt.Errorf("decrypt the assertion: %w", err)
		}
		if err := noWeakSignature(plain); err != nil {
			return err
		}
	}
	return nil
}

// decrypt decrypts one encrypted assertion. XML Encryption 1.1, section 5.5: the key lies beside the data or in its KeyInfo.
func decrypt(own *rsa.PrivateKey, el *etree.Element) ([]byte, error) {
	data := el.FindElement("./EncryptedData")
	if data == nil {
		return nil, errors.New("there is no EncryptedData")
	}
	keys := el.FindElements(".//EncryptedKey")
	if len(keys) != 1 {
		return nil, fmt.Errorf("there are %d keys, not one", len(keys))
	}
	method := keys[0].FindElement("./EncryptionMethod")
	if method == nil || method.SelectAttrValue("Algorithm", "") != xmlenc.OAEP().Algorithm() {
		return nil, errors.New("the key is not encrypted with RSA-OAEP-MGF1P")
	}
	if data.FindElement("./KeyInfo/EncryptedKey") != nil {
		return xmlenc.Decrypt(own, data) // which reads the key itself
	}
	key, err := xmlenc.Decrypt(own, keys[0])
	if err != nil {
		return nil, err
	}
	return xmlenc.Decrypt(key, data)
}
