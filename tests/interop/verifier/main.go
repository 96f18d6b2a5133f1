// Command verifier checks a Folkmoot log with other people's libraries only.
//
//	verifier checkpoint  POLICY CHECKPOINT
//	verifier consistency POLICY OLD-CHECKPOINT NEW-CHECKPOINT PROOF
//	verifier receipt     POLICY RECEIPT
//
// POLICY is a c2sp.org/tlog-policy file with one log line, PROOF a base64 hash on each
// line, RECEIPT a c2sp.org/tlog-proof@v1 file whose extra line is the leaf. It prints
// the size and root that it accepted, or exits with 1 and says why not.
package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/formats/proof"
	"github.com/transparency-dev/formats/witness"
	merkle "github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
)

func main() {
	checkpoint, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "refused:", err)
		os.Exit(1)
	}
	fmt.Printf("accepted: size %d, root %x\n", checkpoint.Size, checkpoint.Hash)
}

func run(args []string) (*log.Checkpoint, error) {
	files := make([][]byte, 0, len(args))
	for _, path := range args[min(1, len(args)):] {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		files = append(files, data)
	}
	switch {
	case len(args) == 3 && args[0] == "checkpoint":
		return verifyCheckpoint(files[0], files[1])
	case len(args) == 5 && args[0] == "consistency":
		return verifyConsistency(files[0], files[1], files[2], files[3])
	case len(args) == 3 && args[0] == "receipt":
		return verifyReceipt(files[0], files[1])
	}
	return nil, fmt.Errorf("usage: verifier checkpoint|consistency|receipt POLICY FILE...")
}

func verifyCheckpoint(policy, signed []byte) (*log.Checkpoint, error) {
	// ParsePolicy reads everything but the log line.
	quorum, err := witness.ParsePolicy(policy)
	if err != nil {
		return nil, err
	}
	_, rest, _ := bytes.Cut(append([]byte("\n"), policy...), []byte("\nlog "))
	vkey := bytes.Fields(rest)
	if len(vkey) == 0 {
		return nil, fmt.Errorf("the policy names no log")
	}
	key, err := note.NewVerifier(string(vkey[0]))
	if err != nil {
		return nil, err
	}
	// With the cosigners among the known keys, one forged cosignature spoils the note.
	cosigners := slices.Collect(maps.Values(quorum.Endpoints()))
	checkpoint, _, _, err := log.ParseCheckpoint(signed, key.Name(), key, cosigners...)
	if err != nil {
		return nil, err
	}
	if !quorum.Satisfied(signed) {
		return nil, fmt.Errorf("too few cosignatures")
	}
	return checkpoint, nil
}

func verifyConsistency(policy, oldSigned, newSigned, hashes []byte) (*log.Checkpoint, error) {
	older, err := verifyCheckpoint(policy, oldSigned)
	if err != nil {
		return nil, err
	}
	newer, err := verifyCheckpoint(policy, newSigned)
	if err != nil {
		return nil, err
	}
	path := [][]byte{}
	for _, line := range bytes.Fields(hashes) {
		hash, err := base64.StdEncoding.DecodeString(string(line))
		if err != nil {
			return nil, err
		}
		path = append(path, hash)
	}
	return newer, merkle.VerifyConsistency(rfc6962.DefaultHasher, older.Size, newer.Size, path, older.Hash, newer.Hash)
}

func verifyReceipt(policy, receipt []byte) (*log.Checkpoint, error) {
	var parsed proof.TLogProof
	if err := parsed.Unmarshal(receipt); err != nil {
		return nil, err
	}
	checkpoint, err := verifyCheckpoint(policy, parsed.Checkpoint)
	if err != nil {
		return nil, err
	}
	path := [][]byte{}
	for _, hash := range parsed.Hashes {
		path = append(path, hash[:])
	}
	leaf := rfc6962.DefaultHasher.HashLeaf(parsed.ExtraData)
	return checkpoint, merkle.VerifyInclusion(rfc6962.DefaultHasher, parsed.Index, checkpoint.Size, leaf, path, checkpoint.Hash)
}
